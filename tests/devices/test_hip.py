"""The HIP backend on the simulated device: in all stream modes no race and no leak, and each edge is needed."""

import sys
from pathlib import Path

import pytest
import simulated_device

PROGRAM = Path(__file__).parents[1] / "device_programs.py"


def run(*arguments, **options):
    return simulated_device.run([sys.executable, PROGRAM, "hip", *arguments], HIPSIM_PROTECT=1, **options)


@pytest.mark.parametrize("mode", simulated_device.MODES)
def test_no_races_and_no_leaks(mode):
    done = run(mode=mode)
    assert done.status == 0, done.errors
    assert "things_are_left_open" in done.output


# An edge of the runtime, and a program that needs it.
EDGES = {
    "handover": "a_buffer_wanders_between_streams",
    "reader": "a_reader_is_not_overtaken",
    "wait": "a_buffer_wanders_between_streams",
    "reuse": "memory_goes_to_another_stream",
    "staging": "host_memory_changes_at_once",
    "fetch": "there_and_back",
}


@pytest.mark.parametrize("mode", simulated_device.MODES)
@pytest.mark.parametrize("edge", EDGES)
def test_every_edge_is_needed(edge, mode):
    done = run("--without", edge, EDGES[edge], mode=mode)
    assert done.status != 0
    assert {"race", "host access"} & set(simulated_device.kinds(done.findings)), done.errors


def test_copies_stay_on_their_streams():
    """No call on the null stream, none that copies without a stream, none that waits for the whole device."""
    done = run("there_and_back", "a_buffer_wanders_between_streams", "copies_are_fetched_late", mode="lazy", log=True)
    assert done.status == 0, done.errors
    calls = done.calls()
    copies = [call for call in calls if call.function == "hipMemcpyAsync"]
    assert {call.arguments["kind"] for call in copies} == {"H2D", "D2D", "D2H"}
    assert not [call for call in calls if call.arguments.get("stream") == "null"]
    assert not {call.function for call in calls} & {"hipMemcpy", "hipMemset", "hipDeviceSynchronize", "hipSetDevice"}


# A call that fails from its first time on, and a program that comes to it.
FAILING = [
    ("hipMalloc", "there_and_back"),
    ("hipHostMalloc", "there_and_back"),
    ("hipMemcpyAsync", "there_and_back"),
    ("hipEventRecord", "there_and_back"),
    ("hipEventSynchronize", "there_and_back"),
    ("hipEventQuery", "host_memory_changes_at_once"),
    ("hipStreamWaitEvent", "a_reader_is_not_overtaken"),
    ("hipStreamSynchronize", "threads_share_a_buffer"),
]


@pytest.mark.parametrize(("function", "program"), FAILING)
def test_a_failure_is_raised_by_name_and_leaves_nothing(function, program):
    done = run(program, mode="lazy", HIPSIM_FAIL=f"{function}:1+:719")
    assert done.status == 1, (done.status, done.errors)
    assert f"DeviceError: {function}: hipErrorLaunchFailure (719)" in done.errors
    assert done.findings == [], done.errors


# What a call that fails to give something back leaves: just that.
LEFT = {
    "hipFree": " bytes, made by hipMalloc",
    "hipHostFree": " bytes, made by hipHostMalloc",
    "hipStreamDestroy": "made by hipStreamCreateWithFlags",
    "hipEventDestroy": "made by hipEventCreateWithFlags",
}
CALLS = (
    *dict(FAILING),
    *LEFT,
    "hipGetDeviceCount",
    "hipGetDevicePropertiesR0600",
    "hipGetDevice",
    "hipStreamCreateWithFlags",
    "hipMemGetInfo",
    "hipEventCreateWithFlags",
    "hipMemsetAsync",
    "hipDeviceSynchronize",
)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 3, 8])
@pytest.mark.parametrize("function", CALLS)
def test_one_failure_anywhere(function, number):
    """All programs, one call fails: its name is raised, or nobody called it so often; no race, hang, crash or leak."""
    done = run(mode="lazy", HIPSIM_FAIL=f"{function}:{number}:719")
    raised = f"DeviceError: {function.removesuffix('R0600')}: hipErrorLaunchFailure (719)" in done.errors
    assert done.status == (1 if raised else 0), done.errors
    assert len(done.findings) == (function in LEFT and raised), done.errors
    assert all(LEFT[function] in finding for finding in done.findings)


def test_out_of_memory_frees_what_is_cached_and_asks_again():
    done = run("memory_goes_to_another_stream", mode="lazy", log=True, HIPSIM_FAIL="hipMalloc:2:2")
    assert done.status == 0, done.errors
    assert [call.injected for call in done.calls() if call.function == "hipMalloc"] == [0, 2, 0]
