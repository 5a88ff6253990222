"""HIPSIM_PROTECT: what the host may do with pinned memory while queued work is still to use it."""

import pytest
from simulated_device import cases

SETTINGS = (("HIPSIM_PROTECT", "1"),)
EXPECTED = {
    "source_overwritten": ("writes", "is still to read", 5),
    "source_read": (None, None, 5),
    "target_read_too_early": ("reads", "is still to write", None),
    "target_read_after_the_event": (None, None, 1),
    "target_read_after_an_earlier_event": ("reads", "is still to write", None),
    "target_read_once_it_is_done": (None, None, 1),
    "other_memory_on_the_same_page": (None, None, 7),
    "two_copies_of_which_one_is_done": ("writes", "is still to read", None),
    "a_large_target": (None, None, 8 * 4096),
}


@pytest.mark.parametrize("mode", ["threaded", "lazy"])
def test_every_case_is_expected(mode):
    assert set(cases("flights.py", mode, settings=SETTINGS)) == set(EXPECTED)


@pytest.mark.parametrize("mode", ["threaded", "lazy"])
@pytest.mark.parametrize("name", EXPECTED)
def test_case(name, mode):
    result = cases("flights.py", mode, settings=SETTINGS)[name]
    verb, still, returned = EXPECTED[name]
    assert len(result["findings"]) == (verb is not None)
    for finding in result["findings"]:
        assert finding.startswith(f"host access: the program itself {verb} byte")
        assert still in finding
    assert result["returned"] == returned
