"""Every call of HIP, BLAS and MIOpen that a session makes fails once: a named error or an announced fallback."""

import subprocess
import sys

import fault_sweep
import pytest
from fault_sweep import Known
from simulated_device import MODES, PROGRAMS

SCENARIOS = ("eager", "captured")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults") / "model.onnx"
    subprocess.run([sys.executable, PROGRAMS / "faults.py", "write", path], check=True)
    return path


def wrong(results):
    """The calls that are neither reported nor known, and the lines of the list that were met."""
    known, met, unknown = set(fault_sweep.known_failures()), set(), []
    for call, report in results:
        outcome = fault_sweep.outcome(call, report)
        line = Known(call.phase, call.function, outcome)
        if outcome in ("reported", "recovered"):
            continue
        if call.by_ort and line in known:
            met.add(line)
        else:
            unknown.append((outcome, call, report.get("errors"), report["findings"]))
    return unknown, met


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_fails_by_itself(model, scenario, mode):
    clean, calls = fault_sweep.discover(model, scenario, mode)
    assert clean["status"] == 0
    assert [clean[name] for name in ("findings", "errors", "wrong", "fallbacks", "uncaptured")] == [[], [], [], [], ""]
    assert len(calls) > 120


def test_one_call_of_each_kind_fails(model):
    _, calls = fault_sweep.discover(model, "eager", "lazy")
    kinds = {(call.function, call.phase, call.caller): call for call in calls}
    unknown, _ = wrong(fault_sweep.sweep(model, "eager", "lazy", list(kinds.values())))
    assert unknown == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_call_fails_and_the_list_is_needed(model, mode):
    met = set()
    for scenario in SCENARIOS:
        _, calls = fault_sweep.discover(model, scenario, mode)
        unknown, known = wrong(fault_sweep.sweep(model, scenario, mode, calls))
        assert unknown == [], scenario
        met |= known
    # Which calls are made is partly chance in threaded mode.
    needless = set() if mode == "threaded" else set(fault_sweep.known_failures()) - met
    assert sorted(needless, key=str) == [], "no longer needed: take them off the list"
