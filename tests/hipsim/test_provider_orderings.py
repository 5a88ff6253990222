"""The real ROCm provider on the simulated device: orders of copies and runs that are right, and those that race.

Wrong orders may still give right values, so only the detector tells: `right` is where the value is certain too.
"""

import pytest
from simulated_device import MODES, cases, kinds

RACES = {
    "all_on_the_sessions_stream": False,
    "input_on_another_stream": True,
    "input_on_another_stream_with_an_event": False,
    "input_on_the_null_stream": True,
    "input_on_the_null_stream_for_a_blocking_stream": False,
    "output_on_the_null_stream": True,
    "output_on_another_stream": True,
    "no_user_stream_and_no_wait": True,
    "no_user_stream_and_ort_waits": False,
    "numpy_without_a_wait": True,
    "numpy_after_ort_waited": False,
}


@pytest.mark.parametrize("mode", MODES)
def test_every_ordering_is_tried(mode):
    assert set(cases("provider_orderings.py", mode)) == set(RACES)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", RACES)
def test_ordering(name, mode):
    result = cases("provider_orderings.py", mode)[name]
    assert set(kinds(result["findings"])) == ({"race"} if RACES[name] else set())
    if not RACES[name]:
        assert result["returned"], "the answer is wrong"


def test_lazy_streams_show_what_a_missing_wait_reads():
    assert not cases("provider_orderings.py", "lazy")["numpy_without_a_wait"]["returned"]
