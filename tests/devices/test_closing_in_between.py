"""What another thread closes in the midst of a call stays until the call is over."""

import threading

import numpy as np
import pytest
from fake_driver import FakeDriver

from rocline.errors import DeviceError
from rocline.runtime.devices import Stream


@pytest.fixture
def driver():
    return FakeDriver()


@pytest.mark.parametrize("use", ["wait", "trim", "let go", "synchronize", "close"])
def test_a_stream_is_not_destroyed_while_another_thread_uses_it(driver, device, streams, use):
    one, two, _ = streams
    buffer = device.upload(np.arange(4.0), stream=two)
    if use == "trim":
        buffer.close()
    taken = device.from_dlpack(device.allocate(1000, stream=two), stream=two)
    closing = threading.Thread(target=two.close)
    enter = driver._enter

    def close_in_between(call, *details):
        if call in ("record", "synchronize_stream") and not closing.ident:
            closing.start()
            closing.join(0.1)
            assert two.handle in driver.live["streams"], "it is used next"
        enter(call, *details)

    driver._enter = close_in_between
    {
        "wait": lambda: one.wait(two),
        "trim": device.pool.trim,
        "let go": taken.close,
        "synchronize": two.synchronize,
        "close": two.close,
    }[use]()
    closing.join()
    assert two.closed
    assert two.handle not in driver.live["streams"]


@pytest.mark.parametrize("use", [Stream.record, lambda one: one.wait(one.other), lambda one: one.wait(one.event)])
def test_a_stream_that_another_thread_closed_just_before_is_left_alone(driver, streams, monkeypatch, use):
    one, one.other = streams[:2]
    one.event = one.other.record()
    queueing = Stream.queueing

    def closed_before(self):
        closing = threading.Thread(target=one.close)
        closing.start()
        closing.join()
        return queueing(self)

    monkeypatch.setattr(Stream, "queueing", closed_before)
    driver.log.clear()
    with pytest.raises(DeviceError, match="closed"):
        use(one)
    assert ("destroy_stream", one.handle) in driver.log
    assert [entry[:2] for entry in driver.log if entry[0] in ("record", "wait") and entry[1] == one.handle] == []


@pytest.mark.parametrize("use", ["synchronize", "done", "fetch"])
def test_an_event_is_not_destroyed_while_another_thread_waits_for_it(driver, device, streams, use):
    buffer = device.upload(np.arange(4.0), stream=streams[0])
    event, copy = streams[0].record(), buffer.fetch()
    closing = threading.Thread(target=device.close)
    call = "event_done" if use == "done" else "synchronize_event"
    before, alive = getattr(driver, call), []

    def close_in_between(handle):
        if not closing.ident:
            closing.start()
            closing.join(60)
            alive.append((device.closed, handle in driver.live["events"]))
        return before(handle)

    setattr(driver, call, close_in_between)
    if use == "fetch":
        np.testing.assert_array_equal(copy.numpy(), np.arange(4.0))
    else:
        assert event.synchronize() is None if use == "synchronize" else event.done
    assert alive == [(True, True)]
    driver.synchronize_stream(streams[1].handle)
    assert "events" not in driver.leaks()
    with pytest.raises(DeviceError, match="closed"):
        event.synchronize()


def test_no_event_is_recorded_on_a_device_that_another_thread_closes(driver, device, streams):
    create = driver.create_event
    closing = threading.Thread(target=device.close)

    def close_in_between(device_id):
        closing.start()
        closing.join(0.1)
        return create(device_id)

    driver.create_event = close_in_between
    event = streams[0].record()
    closing.join(60)
    with pytest.raises(DeviceError, match="closed"):
        event.synchronize()
    assert driver.leaks() == {}
