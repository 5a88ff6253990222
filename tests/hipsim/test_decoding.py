"""Decoding in a static cache on the simulated device: the CPU's tokens, no race, and little to do at each step."""

import json
import sys
from collections import Counter

import pytest
from simulated_device import MODES, PROGRAMS, run

STEPS = 6
VOCABULARY = 50


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("head", ["head", "plain"])
def test_the_device_decodes_the_cpus_tokens(head, mode):
    done = run([sys.executable, PROGRAMS / "decoding.py", PROGRAMS.parents[1], head, STEPS], mode, log=True)
    assert done.status == 0, done.errors
    answers = json.loads(done.output)
    assert answers["rocm"] == answers["cpu"]
    assert answers["cpu"]["greedy"] != answers["cpu"]["sampled"]

    calls = done.calls("begin", "end")
    copies = Counter((c.arguments["kind"], c.arguments["bytes"]) for c in calls if c.function == "hipMemcpyAsync")
    # The token and its position go in; the next token comes out, or the logits where the host chooses.
    assert copies == {("H2D", "8"): 2 * STEPS, ("D2H", "8" if head == "head" else str(4 * VOCABULARY)): STEPS}
    functions = Counter(call.function for call in calls)
    assert functions["hipEventSynchronize"] == STEPS
    # How much pinned memory is in use at a time depends on how fast the device is, which is chance in threaded mode.
    chance = {"hipHostMalloc"} if mode == "threaded" else set()
    assert not [name for name in functions if ("Malloc" in name or "Free" in name) and name not in chance]
    assert {call.arguments.get("stream") for call in calls} <= {None, "s1"}
