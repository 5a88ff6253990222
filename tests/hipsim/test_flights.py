"""HIPSIM_PROTECT: what the host may do with pinned memory before it has waited for the work that uses it."""

import re

import pytest
from simulated_device import MODES, cases

SETTINGS = (("HIPSIM_PROTECT", "1"),)
EXPECTED = {
    "source_overwritten": ("writes", "reads", 5),
    "source_read": (None, None, 5),
    "target_read_too_early": ("reads", "writes", None),
    "target_read_after_the_event": (None, None, 1),
    "target_read_after_an_earlier_event": ("reads", "writes", None),
    "target_read_once_it_is_done": (None, None, 1),
    "other_memory_on_the_same_page": (None, None, 7),
    "two_copies_of_which_one_is_done": ("writes", "reads", None),
    "a_large_target": (None, None, 8 * 4096),
    "a_function_fills_what_its_stream_then_copies": (None, None, 5),
    "a_function_reads_what_another_stream_writes": ("reads", "writes", None),
    "a_function_reads_what_another_stream_wrote": (None, None, 1),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_case_is_expected(mode):
    assert set(cases("flights.py", mode, settings=SETTINGS)) == set(EXPECTED)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", EXPECTED)
def test_case(name, mode):
    result = cases("flights.py", mode, settings=SETTINGS)[name]
    verb, what, returned = EXPECTED[name]
    assert len(result["findings"]) == (verb is not None)
    for finding in result["findings"]:
        who = r"host function \(call \d+\) on s\d+ \(non-blocking\)" if "function" in name else "the program itself"
        assert re.match(f"host access: {who} {verb} byte", finding)
        assert finding.endswith(f" {what}; nothing has waited for that")
    assert result["returned"] == returned
