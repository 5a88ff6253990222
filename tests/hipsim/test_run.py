"""tests/hipsim/run: exit statuses, what is found at the end, and what the environment variables do."""

import os
import re
import subprocess
import sys

import pytest
from simulated_device import FINDINGS, FOLDER, PROGRAMS, kinds, run


def mistake(name, mode="sync", **settings):
    return run([sys.executable, PROGRAMS / "mistakes.py", name], mode, **settings)


@pytest.mark.parametrize(
    ("name", "status"),
    [("nothing", 0), ("exits_with_3", 3), ("killed", 128 + 9), ("leaves_everything", FINDINGS), ("forks", 0)],
)
def test_status(name, status):
    assert mistake(name).status == status


def test_a_command_that_is_not_there():
    done = run(["/nonexistent/command"])
    assert done.status == 127
    assert "hipsim: /nonexistent/command: No such file or directory" in done.errors


def test_any_folder_and_an_empty_environment(tmp_path):
    environ = {"PATH": os.environ["PATH"]}
    command = [FOLDER / "run", sys.executable, PROGRAMS / "mistakes.py", "nothing"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_leaks_are_named_with_the_calls_that_made_them():
    done = mistake("leaves_everything")
    assert set(kinds(done.findings)) == {"leak"}
    for made in (
        r"256 bytes, made by hipMalloc \(call \d+, by \S+\)",
        r"256 bytes, made by hipHostMalloc \(",
        r"hipStream s1, made by hipStreamCreateWithFlags \(",
        r"hipEvent e1, made by hipEventCreateWithFlags \(",
        r"hipGraph \S+, made by hipStreamEndCapture \(",
        r"hipGraphExec \S+, made by hipGraphInstantiate \(",
        r"hipBLAS handle \S+, made by hipblasCreate \(",
    ):
        assert any(re.search(made, finding) for finding in done.findings), made
    assert len(done.findings) == 7


@pytest.mark.parametrize("mode", ["threaded", "lazy"])
def test_work_that_nobody_waited_for_is_checked_at_the_end(mode):
    assert "race" in kinds(mistake("leaves_work_that_races", mode).findings)


def test_functions_of_the_program_do_not_run_after_it():
    done = mistake("leaves_a_function", "lazy")
    assert done.status == FINDINGS  # and no crash
    assert kinds(done.findings) == ["leak"]


def test_children_count():
    done = mistake("races_in_a_child")
    assert done.status == FINDINGS
    assert "race" in kinds(done.findings)


@pytest.mark.parametrize(
    ("name", "mode", "kind"),
    [
        ("reads_device_memory", "sync", "host access"),
        ("reads_device_memory_after_work", "lazy", "host access"),
        ("reads_device_memory_after_work", "threaded", "host access"),
        ("reads_freed_pinned_memory", "sync", "use after free"),
        ("reads_beyond_pinned_memory", "sync", "out of bounds"),
    ],
)
def test_the_host_faults_on_what_is_not_its_own(name, mode, kind):
    done = mistake(name, mode, HIPSIM_PROTECT=1)
    assert done.status == 128 + 11
    assert kinds(done.findings)[0] == kind
    assert "the program itself reads bytes" in done.findings[0]


@pytest.mark.parametrize("mode", ["threaded", "lazy"])
def test_a_wait_without_end_is_ended(mode):
    done = mistake("waits_for_ever", mode, HIPSIM_HANG_S=1)
    assert done.status == FINDINGS
    assert re.search(r"hang: nothing has ended for 1 s; running: host function \(call \d+\) on s1", done.errors)


def test_a_function_that_is_not_simulated_is_named():
    done = mistake("calls_what_is_not_simulated")
    assert (done.status, done.output) == (FINDINGS, "6\n")
    assert done.findings == ["unimplemented: miopenLRNForward is called, which hipsim does not simulate"]
    injected = mistake("calls_what_is_not_simulated", HIPSIM_FAIL="miopenLRNForward:1:3")
    assert (injected.status, injected.output) == (0, "3\n")


def test_failures_are_injected_by_function_and_number():
    failures = "hipMemGetInfo:2:999,hipMemGetInfo:4+:2,hipblasCreate:1:3"
    assert mistake("fails_where_it_is_told", HIPSIM_FAIL=failures).output == "[0, 999, 0, 2, 2, 3]\n"
    assert mistake("fails_where_it_is_told", HIPSIM_FAIL="hipMemGetInfo:3+:2").output == "[0, 0, 2, 2, 2, 0]\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [("HIPSIM_MODE", "eager"), ("HIPSIM_FAIL", "hipMalloc:x:1"), ("HIPSIM_FAIL", "hipMalloc"), ("HIPSIM_SEED", "one")],
)
def test_settings_that_make_no_sense_are_refused(name, value):
    settings = {name: value} if name != "HIPSIM_MODE" else {}
    done = mistake("fails_where_it_is_told", value if name == "HIPSIM_MODE" else "sync", **settings)
    assert done.status == 2
    assert f"'{value}', expected" in done.errors


def test_the_call_log():
    done = mistake("is_logged", log=True)
    calls = done.calls("begin", "end")
    streams = {line["handle"]: line["stream"] for line in done.log if "handle" in line}
    assert list(streams.values()) == ["s1", "s2"]
    assert [(call.function, call.arguments.get("stream")) for call in calls] == [
        ("hipMemsetAsync", "s1"),
        ("hipEventRecord", "s1"),
        ("hipStreamWaitEvent", "s2"),
        ("hipMemcpyAsync", "s2"),
        ("hipMemcpyAsync", "s2"),
        ("hipStreamSynchronize", "s2"),
    ]
    assert calls[3].arguments == {"bytes": "256", "kind": "D2D", "stream": "s2"}
    assert calls[4].arguments == {"bytes": "128", "kind": "D2H", "stream": "s2"}
    assert [call.number for call in done.calls()] == list(range(1, len(done.calls()) + 1))
    assert done.calls()[-1].function == "hipDeviceSynchronize"


def test_an_injected_failure_is_logged():
    done = mistake("fails_where_it_is_told", log=True, HIPSIM_FAIL="hipMemGetInfo:2:999")
    assert [call.injected for call in done.calls() if call.function == "hipMemGetInfo"] == [0, 999, 0, 0]
