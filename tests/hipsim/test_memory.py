"""What the simulated device says about memory and handles, and what its functions return."""

import pytest
from simulated_device import MODES, cases, kinds

INVALID_VALUE, OUT_OF_MEMORY, INVALID_HANDLE, ILLEGAL_STATE, NOT_READY, DESTROYED = 1, 2, 400, 401, 600, 709

EXPECTED = {
    "new_memory_holds_no_numbers": ([], 64),
    "copy_beyond_the_end": (["out of bounds"], INVALID_VALUE),
    "fill_beyond_the_end": (["out of bounds"], INVALID_VALUE),
    "copy_from_freed_memory": (["use after free"], INVALID_VALUE),
    "freed_twice": (["double free"], INVALID_VALUE),
    "freed_by_the_wrong_function": ([], INVALID_VALUE),
    "free_of_nothing": ([], 0),
    "pageable_memory_called_device_memory": (["wrong direction"], INVALID_VALUE),
    "more_than_there_is": ([], [OUT_OF_MEMORY, None, OUT_OF_MEMORY, 0]),
    "what_is_free": ([], [1 << 20, 0]),
    "kinds_of_pointers": ([], [2, 1, 1, 0]),
    "stream_used_after_it_was_destroyed": (["use after destroy"] * 2, [DESTROYED] * 2),
    "event_used_after_it_was_destroyed": (["use after destroy"], INVALID_HANDLE),
    "stream_that_never_was": (["invalid handle"], DESTROYED),
    "event_for_a_stream": (["invalid handle"], DESTROYED),
    "time_between_events_that_keep_none": ([], INVALID_HANDLE),
    "event_that_was_never_recorded_is_done": ([], [0, 0]),
    "function_of_the_program_runs_in_order": ([], [5, 6]),
    "function_of_the_program_calls_hip": (["call inside the device"], [ILLEGAL_STATE]),
    "rows_of_a_matrix": ([], 64),
    "words_of_a_fill": ([], 4),
    "findings_that_were_taken_are_gone": ([], [2, 0]),
    "what_was_taken_is_found_again": ([], [1, 1]),
}
BY_MODE = {
    "time_between_events": {
        "sync": [[0, True]],
        "lazy": [[NOT_READY, True]],
        "threaded": [[0, True], [NOT_READY, True]],
    },
    # What the host sees at once, how often it asks until the third operation is done, and what it sees then.
    "work_that_was_not_waited_for": {"sync": [[1, 1, 1]], "lazy": [[7, 4, 1]]},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", EXPECTED)
def test_case(name, mode):
    result = cases("memory.py", mode)[name]
    assert (kinds(result["findings"]), result["returned"]) == EXPECTED[name]


@pytest.mark.parametrize("mode", MODES)
def test_cases_that_depend_on_the_mode(mode):
    results = cases("memory.py", mode)
    assert set(results) == set(EXPECTED) | set(BY_MODE)
    for name, expected in BY_MODE.items():
        assert results[name]["findings"] == []
        assert results[name]["returned"] in expected.get(mode, [results[name]["returned"]])


def test_findings_name_the_memory_and_the_calls():
    results = cases("memory.py", "sync")
    assert (
        "hipMemcpyAsync writes bytes 0 to 257 of the 256 that hipMalloc"
        in results["copy_beyond_the_end"]["findings"][0]
    )
    freed = results["copy_from_freed_memory"]["findings"][0]
    assert "hipMemcpyAsync reads bytes 0 to 256 of the 256 that hipMalloc" in freed
    assert "; freed by hipFree" in freed
    destroyed = results["stream_used_after_it_was_destroyed"]["findings"][0]
    assert destroyed.startswith("use after destroy: hipStream s")
    assert "is used by hipMemsetAsync" in destroyed
    assert "destroyed by hipStreamDestroy" in destroyed
