"""Stream capture on the simulated device: what spoils it, and what a launch of the graph is ordered with."""

import pytest
from simulated_device import MODES, cases, kinds

INVALID_VALUE, ILLEGAL_STATE = 1, 401
UNSUPPORTED, INVALIDATED, UNJOINED, ISOLATION, IMPLICIT = 900, 901, 904, 905, 906
CAPTURED_EVENT, WRONG_THREAD = 907, 908

EXPECTED = {
    "captured_work_runs_only_when_launched": ([], [1, 2]),
    "a_launch_reads_what_is_there_then": ([], [5, 6]),
    "launches_on_another_stream_race": (["race"], None),
    "launches_of_one_graph_on_two_streams": (["race"], None),
    "launches_of_one_graph_on_two_streams_with_an_event": ([], 1),
    "a_forked_capture_is_ordered_within": ([], [3, 4]),
    "branches_of_a_graph_race": (["race"], None),
    "a_branch_that_never_comes_back": ([], UNJOINED),
    "a_graph_that_uses_freed_memory": (["use after free"], None),
    "allocating_in_a_global_capture": ([], [UNSUPPORTED, INVALIDATED]),
    "allocating_in_a_relaxed_capture": ([], [0, 0]),
    "another_thread_allocating_in_a_global_capture": ([], [UNSUPPORTED, INVALIDATED]),
    "another_thread_allocating_in_a_thread_local_capture": ([], [0, 0]),
    "waiting_for_the_captured_stream": ([], [UNSUPPORTED, INVALIDATED]),
    "asking_the_captured_stream": ([], [UNSUPPORTED, INVALIDATED]),
    "waiting_for_the_device": ([], [UNSUPPORTED, INVALIDATED]),
    "a_synchronous_copy": ([], [UNSUPPORTED, INVALIDATED]),
    "the_null_stream_while_a_blocking_stream_is_captured": ([], [IMPLICIT, INVALIDATED]),
    "the_null_stream_while_a_non_blocking_stream_is_captured": ([], [0, 0]),
    "an_event_from_outside": ([], [ISOLATION, INVALIDATED]),
    "an_event_of_the_capture": ([], [CAPTURED_EVENT, INVALIDATED]),
    "an_event_of_a_capture_that_is_over": ([], 0),
    "a_capture_of_the_null_stream": ([], UNSUPPORTED),
    "a_capture_twice": ([], [ILLEGAL_STATE, 0]),
    "an_end_without_a_beginning": ([], ILLEGAL_STATE),
    "an_end_in_another_thread": ([], [WRONG_THREAD, 0]),
    "states_of_a_capture": ([], [0, 1, 2, INVALIDATED, 0]),
    "a_graph_used_after_it_was_destroyed": (["use after destroy"], INVALID_VALUE),
    "pinned_memory_is_read_at_each_launch": ([], [1, 2]),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_case_is_expected(mode):
    assert set(cases("capture.py", mode)) == set(EXPECTED)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", EXPECTED)
def test_case(name, mode):
    result = cases("capture.py", mode)[name]
    assert (kinds(result["findings"]), result["returned"]) == EXPECTED[name]


def test_a_race_within_a_graph_names_the_graphs_own_streams():
    (text,) = cases("capture.py", "sync")["branches_of_a_graph_race"]["findings"]
    assert "write after read: hipMemsetAsync" in text
    assert "and before it hipMemcpyAsync(D2D)" in text
