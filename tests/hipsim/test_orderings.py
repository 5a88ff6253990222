"""The race detector: which orders of two accesses it reports, in every mode, and in what words."""

import re

import pytest
from simulated_device import MODES, cases, kinds

ORDERINGS = {
    "one_stream": [],
    "read_after_write": ["read after write"],
    "write_after_read": ["write after read"],
    "write_after_write": ["write after write"],
    "read_after_read": [],
    "halves_of_one_allocation": [],
    "one_byte_in_common": ["write after write"],
    "event_between": [],
    "event_recorded_too_early": ["read after write"],
    "event_waited_for_too_late": ["read after write"],
    "event_never_recorded": ["read after write"],
    "event_of_the_record_before": ["read after write"],
    "event_forgotten_after_the_wait": [],
    "over_a_third_stream": [],
    "over_the_wrong_stream": ["read after write"],
    "host_waits_for_the_stream": [],
    "host_waits_for_another_stream": ["read after write"],
    "host_waits_for_the_event": [],
    "host_asks_until_the_event_is_done": [],
    "host_asks_until_the_stream_is_done": [],
    "host_waits_in_another_thread": [],
    "destroying_a_stream_waits_for_nothing": ["read after write"],
    "freeing_waits_for_the_device": [],
    "null_stream_before_a_blocking_one": [],
    "null_stream_after_a_blocking_one": [],
    "null_stream_before_a_non_blocking_one": ["read after write"],
    "null_stream_after_a_non_blocking_one": ["read after write"],
    "blocking_streams_are_not_ordered": ["read after write"],
    "blocking_streams_around_the_null_stream": [],
    "host_waits_for_the_null_stream": [],
    "copy_from_pageable_memory_does_not_wait": ["read after write"],
    "pageable_memory_may_be_reused_at_once": [],
    "synchronous_copy_from_pageable_memory_waits": [],
    "copy_to_pageable_memory_waits": [],
    "copy_of_pinned_memory_does_not_wait": ["read after write"],
    "synchronous_copy_on_the_device_does_not_wait": ["read after write"],
    "pinned_memory_reused_too_early": ["write after read"],
    "stream_of_the_thread_and_the_null_stream": [],
    "streams_of_two_threads": ["read after write"],
    "memory_made_in_stream_order": [],
    "memory_used_before_its_stream_made_it": ["write after write"],
}
FREED = "memory_freed_while_another_stream_reads"


@pytest.mark.parametrize("mode", MODES)
def test_every_ordering_is_tried(mode):
    assert set(cases("orderings.py", mode)) == {*ORDERINGS, FREED}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ORDERINGS)
def test_ordering(name, mode):
    result = cases("orderings.py", mode)[name]
    assert kinds(result["findings"]) == ["race"] * len(ORDERINGS[name])
    # What nothing orders may run the other way round.
    mirrored = {"read after write": "write after read", "write after read": "read after write"}
    for finding, expected in zip(result["findings"], ORDERINGS[name], strict=True):
        kind = finding.split(": ")[1]
        assert kind == expected or (mode != "sync" and kind == mirrored[expected])
    assert result["returned"] in (None, 1)  # the byte that arrived, where the order is right


@pytest.mark.parametrize("mode", MODES)
def test_memory_that_is_freed_while_another_stream_reads_it(mode):
    """A race, or a use after free where the copy came to run last."""
    assert kinds(cases("orderings.py", mode)[FREED]["findings"]) in (["race"], ["use after free"])


def test_a_race_names_both_accesses_their_memory_and_what_is_missing():
    (text,) = cases("orderings.py", "lazy")["one_byte_in_common"]["findings"]
    assert re.fullmatch(
        r"race: write after write: hipMemsetAsync \(call (\d+)\) on (s\d+) \(non-blocking\), and before it "
        r"hipMemsetAsync \(call (\d+)\) on (s\d+) \(non-blocking\): bytes 128 to 129 of the 256 that "
        r"hipMalloc \(call \d+, by \S+\) made; \2 has never waited for \4; missing: an event recorded on \4 after the "
        r"first and waited for by \2 before the second, or the host waiting in between",
        text,
    )


def test_a_race_with_the_null_stream_says_what_it_does_not_wait_for():
    (text,) = cases("orderings.py", "lazy")["null_stream_before_a_non_blocking_one"]["findings"]
    assert "a non-blocking stream and the null stream do not wait for each other" in text
