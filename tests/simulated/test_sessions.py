"""Sessions on the real ROCm provider and the simulated HIP device: values, order, what they call, and what they need.

A pass says that the calls are right and ordered; it says nothing of a real GPU.
"""

import re
import sys
from pathlib import Path

import pytest
import session_programs
import simulated_device

PROGRAM = Path(session_programs.__file__)
MODES = ("lazy", "threaded")
WAITS = re.compile("Synchronize|Malloc|Free|EventQuery|Memset$|Memcpy$")


def run(*arguments, mode="lazy", **settings):
    return simulated_device.run([sys.executable, PROGRAM, "rocm", *arguments], mode, HIPSIM_PROTECT=1, **settings)


@pytest.fixture(scope="module", autouse=True)
def simulator():
    """Built before the clock of any test runs."""
    assert simulated_device.run(["true"], timeout=600).status == 0


@pytest.mark.parametrize("mode", MODES)
def test_every_program_is_right_and_in_order(mode):
    done = run(mode=mode)
    assert done.findings == []
    assert done.status == 0, done.errors
    assert done.output.split() == list(session_programs.PROGRAMS)


@pytest.mark.parametrize("edge", session_programs.EDGES)
def test_no_edge_can_be_taken_out(edge):
    *_, noticing = session_programs.EDGES[edge]
    done = run(noticing, "--without", edge)
    assert done.status != 0, f"{noticing} does not notice that {edge} is gone"
    races = [finding for finding in done.findings if finding.startswith(("race", "host access"))]
    assert races or "AssertionError" in done.errors, done.errors


def test_the_first_bug_is_found():
    done = run("the_copy_on_another_stream")
    races = [finding for finding in done.findings if finding.startswith(("race", "host access"))]
    assert done.status == simulated_device.FINDINGS
    assert any("hipMemcpyAsync" in race or "Memcpy" in race for race in races), done.errors
    clean = run("output_to_input_loop")
    assert (clean.status, clean.findings) == (0, [])


def test_what_queued_runs_call():
    done = run("traced", log=True)
    assert done.status == 0, done.errors
    one, queued = done.calls("one run", "queued runs"), done.calls("queued runs", "done")
    for calls in (one, queued):
        streams = {call.arguments["stream"] for call in calls if "stream" in call.arguments}
        assert len(streams) == 1, streams
        assert re.fullmatch(r"s\d+", *streams), "never the null stream"
        waits = [
            call for call in calls if re.search("Synchronize|Malloc|Free|EventQuery|Memset$|Memcpy$", call.function)
        ]
        assert not waits, waits
    names = [call.function for call in one if re.search("gemm|Launch|Memcpy|Record|Wait", call.function)]
    assert names == ["rocblas_gemm_ex", "hipModuleLaunchKernel"]
    assert [call.function for call in queued].count("hipMemcpyAsync") == 5
    closing = [call.function for call in done.calls("closing")]
    assert closing[0] == "hipStreamSynchronize", "before ONNX Runtime frees what the queued work uses"
    assert "hipFree" in closing
