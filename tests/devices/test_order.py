"""Uses of a buffer on several streams: the edges that make them safe, no more, and values from streams that lag."""

import gc
import itertools
import threading

import numpy as np
import pytest
from fake_driver import CUDA, FakeDriver

from rocline import DeviceError
from rocline.runtime.devices.storage import Storage


@pytest.fixture
def driver():
    return FakeDriver(devices=2)


def edges(driver):
    """What waits for what, as pairs of handles."""
    return [(waiting, recorded) for _, waiting, recorded in driver.logged("wait")]


def test_one_stream_needs_no_edges(driver, device, streams):
    one = streams[0]
    buffers = [device.upload(np.full(4, n, np.float32), stream=one) for n in range(3)]
    driver.log.clear()
    for source, target in itertools.pairwise(buffers):
        target.copy_from(source, stream=one)
        source.fill(0, stream=one)
    assert {entry[0] for entry in driver.log} == {"copy", "fill"}
    np.testing.assert_array_equal(buffers[2].numpy(), np.zeros(4))


def test_a_read_waits_for_the_write_of_another_stream(driver, device, streams):
    one, two, _ = streams
    buffer = device.upload(np.arange(4.0), stream=one)
    target = device.allocate((4,), np.float64, stream=two)
    driver.log.clear()
    target.copy_from(buffer, stream=two)
    target.copy_from(buffer, stream=two)
    assert edges(driver) == [(two.handle, one.handle)]
    np.testing.assert_array_equal(target.numpy(), np.arange(4.0))


def test_a_write_waits_for_all_readers(driver, device, streams):
    one, two, three = streams
    buffer = device.upload(np.arange(4.0), stream=one)
    copies = [device.allocate((4,), np.float64, stream=stream) for stream in (two, three)]
    for copy in copies:
        copy.copy_from(buffer, stream=copy.stream)
    driver.log.clear()
    buffer.fill(0, stream=one)
    assert sorted(edges(driver)) == sorted([(one.handle, two.handle), (one.handle, three.handle)])
    one.synchronize()
    for copy in copies:
        np.testing.assert_array_equal(copy.numpy(), np.arange(4.0))


def test_a_reader_that_writes_waits_for_what_the_writer_read_since(driver, device, streams):
    one, two, _ = streams
    buffer, target = (device.upload(np.arange(4.0), stream=one) for _ in range(2))
    buffer.use(two)
    target.copy_from(buffer, stream=one)
    driver.log.clear()
    buffer.fill(0, stream=two)
    assert edges(driver) == [(two.handle, one.handle)]
    two.synchronize()
    np.testing.assert_array_equal(target.numpy(), np.arange(4.0))


def test_a_write_waits_for_the_write_of_another_stream(driver, device, streams):
    one, two, _ = streams
    buffer = device.allocate(8, stream=one)
    buffer.fill(1, stream=one)
    driver.log.clear()
    buffer.fill(2, stream=two)
    assert edges(driver) == [(two.handle, one.handle)]
    np.testing.assert_array_equal(buffer.numpy(), np.full(8, 2, np.uint8))


def test_a_read_after_a_new_write_waits_again(driver, device, streams):
    one, two, _ = streams
    buffer, target = (device.allocate(8, stream=stream) for stream in (one, two))
    for value in (1, 2):
        buffer.fill(value, stream=one)
        driver.log.clear()
        target.copy_from(buffer, stream=two)
        assert (two.handle, one.handle) in edges(driver)
    assert target.numpy()[0] == 2


def test_views_are_the_same_memory(driver, device, streams):
    one, two, _ = streams
    buffer = device.allocate((2, 4), stream=one)
    buffer.fill(1, stream=one)
    driver.log.clear()
    buffer.view(4).fill(2, stream=two)
    assert edges(driver) == [(two.handle, one.handle)]
    assert buffer.numpy()[0, 0] == 2


def test_announced_work_counts_as_any(driver, device, streams):
    one, two, _ = streams
    buffer = device.allocate(8, stream=one)
    handovers = driver.handovers
    buffer.use(one, write=True)
    assert (driver.logged("wait"), driver.handovers) == ([], handovers)
    buffer.use(two)
    buffer.use(one, write=True)
    assert edges(driver) == [(two.handle, one.handle), (one.handle, two.handle)]
    assert driver.handovers == handovers + 2


def test_a_second_read_on_a_stream_is_no_news(driver, device, streams):
    """Bindings look at all their buffers again after each piece of news."""
    one, two, _ = streams
    buffer = device.allocate(8, stream=one)
    buffer.use(two)
    handovers = driver.handovers
    buffer.use(two)
    assert driver.handovers == handovers
    buffer.use(one, write=True)
    assert edges(driver) == [(two.handle, one.handle), (one.handle, two.handle)]


def test_readers_that_are_closed_are_forgotten(driver, device, streams):
    buffer = device.upload(np.arange(4.0), stream=streams[0])
    for _ in range(5):
        with device.create_stream() as passing:
            buffer.numpy(stream=passing)
    assert len(buffer.storage.readers) == 1


def test_a_closed_stream_has_nothing_left_to_wait_for(driver, device, streams):
    one, two, _ = streams
    buffer = device.upload(np.arange(4.0), stream=one)
    one.close()
    driver.log.clear()
    np.testing.assert_array_equal(buffer.numpy(stream=two), np.arange(4.0))
    assert edges(driver) == []


def test_a_copy_to_the_host_needs_no_stream_while_one_is_open(device, streams):
    one, two, three = streams
    buffer = device.upload(np.arange(4.0), stream=one)
    buffer.copy_from(np.zeros(4), stream=two)
    two.close()
    np.testing.assert_array_equal(buffer.numpy(), np.zeros(4))
    one.close()
    with pytest.raises(DeviceError, match=r"buffer .*: used on stream 0x\w+ on hip:0, which is closed"):
        buffer.numpy()
    np.testing.assert_array_equal(buffer.numpy(stream=three), np.zeros(4))


def test_streams_wait_for_events_and_streams(driver, device, streams):
    one, two, three = streams
    buffer = device.allocate(4, stream=one)
    buffer.fill(5, stream=one)
    event = one.record()
    assert not event.done
    two.wait(event)
    three.wait(two)
    one.wait(one)
    three.synchronize()
    assert event.done
    assert edges(driver) == [(two.handle, one.handle), (three.handle, two.handle)]


def test_events_are_used_again(driver, device, streams):
    for _ in range(5):
        streams[0].record().close()
        streams[1].wait(streams[0])
    assert len(driver.logged("create_event")) == 1


# A use of a buffer, and how often it is announced: the last time with nothing between that and its call.
USES = {
    "fill": (lambda buffer, other, stream: buffer.fill(1, stream=stream), 1),
    "copy": (lambda buffer, other, stream: buffer.copy_from(other, stream=stream), 2),
    "upload": (lambda buffer, other, stream: buffer.copy_from(np.zeros(4), stream=stream), 2),
    "fetch": (lambda buffer, other, stream: buffer.fetch(stream=stream).close(), 2),
}


@pytest.mark.parametrize("name", USES)
def test_no_other_thread_gets_between_ordering_and_queueing(driver, device, streams, monkeypatch, name):
    """Its stream would wait for what was queued before, and overtake the rest."""
    one, two, _ = streams
    buffer, other = (device.upload(np.arange(4.0), stream=one) for _ in range(2))
    use, last = USES[name]
    intruder = threading.Thread(target=lambda: buffer.use(two, write=True))
    announce, announced = Storage.use, itertools.count(1)

    def let_the_other_thread_in(self, stream, write):
        announce(self, stream, write)
        if stream is one and next(announced) == last:
            intruder.start()
            intruder.join(0.1)

    monkeypatch.setattr(Storage, "use", let_the_other_thread_in)
    driver.log.clear()
    use(buffer, other, one)
    intruder.join()
    assert [entry[0] for entry in driver.log if entry[0] in ("copy", "fill", "wait")][-1] == "wait"


def test_host_memory_may_change_once_a_copy_is_queued(device, streams):
    array = np.arange(4.0)
    buffer = device.upload(array, stream=streams[0])
    array[:] = -1
    np.testing.assert_array_equal(buffer.numpy(), np.arange(4.0))


def test_a_fetch_does_not_wait(driver, device, streams):
    one = streams[0]
    buffer = device.upload(np.arange(4.0), stream=one)
    driver.log.clear()
    copy = buffer.fetch()
    buffer.fill(0, stream=one)
    assert not copy.done
    assert not driver.logged("synchronize_event", "synchronize_stream", "wait")
    np.testing.assert_array_equal(copy.numpy(), np.arange(4.0))
    assert copy.closed
    np.testing.assert_array_equal(buffer.numpy(), np.zeros(4))


def test_copies_between_device_and_host_buffers(device, streams):
    from rocline.runtime.devices import open_device

    with open_device("cpu") as host:
        theirs = host.upload(np.arange(4.0), stream=host.create_stream())
        buffer = device.allocate((2, 2), np.float64, stream=streams[0])
        buffer.copy_from(theirs, stream=streams[0])
        back = host.allocate((4,), np.float64, stream=theirs.stream)
        back.copy_from(buffer, stream=streams[0])
        np.testing.assert_array_equal(back.array, np.arange(4.0))


def test_other_devices_are_refused(driver, device, streams):
    with driver.device(1) as second:
        stream = second.create_stream()
        buffer, other = device.allocate(4, stream=streams[0]), second.allocate(4, stream=stream)
        with pytest.raises(
            DeviceError, match=r"copy_from: buffer uint8 \(4,\) on hip:1, expected a buffer on hip:0 or"
        ):
            buffer.copy_from(other, stream=streams[0])
        with pytest.raises(DeviceError, match=r"on hip:0: used on stream 0x\w+ on hip:1, which is another device's"):
            buffer.fill(0, stream=stream)
        with pytest.raises(DeviceError, match=r"allocate on hip:0: stream 0x\w+ on hip:1 is another device's"):
            device.allocate(4, stream=stream)
        with FakeDriver(CUDA).device() as stranger:
            theirs = stranger.create_stream()
            with pytest.raises(DeviceError, match=r"cannot wait for stream .* which is on a device of another kind"):
                streams[0].wait(theirs)


def test_two_devices_of_one_number_are_the_same(driver, device, streams):
    with driver.device() as again:
        buffer = again.upload(np.arange(4.0), stream=streams[0])
        target = device.allocate((4,), np.float64, stream=streams[1])
        target.copy_from(buffer, stream=streams[1])
        np.testing.assert_array_equal(target.numpy(), np.arange(4.0))


def test_streams_of_another_library_outlive_the_device_that_knew_them(driver, device, streams):
    theirs = driver.create_stream(0)
    with driver.device() as closed:
        foreign = closed.foreign_stream(theirs)
        buffer = device.upload(np.arange(4.0), stream=foreign)
    np.testing.assert_array_equal(buffer.numpy(stream=streams[0]), np.arange(4.0))
    with pytest.raises(DeviceError, match="hip:0: closed"):
        foreign.record()
    buffer.close()
    device.allocate(32, stream=streams[1]).numpy()
    driver.synchronize_stream(theirs)
    driver.destroy_stream(theirs)


def test_the_host_cannot_see_a_devices_memory(device, streams):
    buffer = device.allocate(4, stream=streams[0])
    with pytest.raises(DeviceError, match=r"the host cannot see this memory; numpy\(\) copies it"):
        _ = buffer.array
    with pytest.raises(DeviceError, match=r"wrap: hip:0 cannot use the host's memory; upload\(\) copies"):
        device.wrap(np.zeros(4))


def test_foreign_streams_are_waited_for_and_left_alone(driver, device, streams):
    theirs = driver.create_stream(0)
    foreign = device.foreign_stream(theirs)
    assert device.foreign_stream(theirs) is foreign
    assert device.foreign_stream(streams[0].handle) is streams[0]
    buffer = device.allocate(4, stream=streams[0])
    buffer.fill(3, stream=foreign)
    assert buffer.numpy(stream=streams[0])[0] == 3
    event = device.foreign_event(driver.create_event(0))
    driver.record_event(event.handle, theirs)
    streams[1].wait(event)
    event.close()
    foreign.close()
    driver.log.clear()
    device.close()
    assert theirs in driver.live["streams"]
    assert event.handle in driver.live["events"]
    driver.destroy_stream(theirs)
    driver.destroy_event(event.handle)


@pytest.mark.parametrize("call", ["allocate_pinned", "copy", "record"])
def test_a_failed_transfer_leaves_nothing_behind(driver, device, streams, call):
    one = streams[0]
    buffer = device.allocate((4,), np.float64, stream=one)
    for use in (
        lambda: buffer.copy_from(np.zeros(4), stream=one),
        buffer.fetch,
        lambda: device.upload(np.zeros(4), stream=one),
    ):
        driver.failing[call] = 0
        with pytest.raises(DeviceError, match=f"{call}: told to fail"):
            use()
        driver.failing.clear()
        device.staging.close()
        assert "pinned" not in driver.leaks()
    assert device.pool.statistics.used == 512


def test_pinned_memory_of_a_copy_that_could_not_be_marked_waits_for_it(driver, device, streams):
    one = streams[0]
    buffer = device.allocate((4,), np.float64, stream=one)
    driver.failing["record"] = 0
    with pytest.raises(DeviceError, match="record: told to fail"):
        buffer.copy_from(np.arange(4.0), stream=one)
    driver.failing.clear()
    # Were it still in flight, this would take the same pinned memory and overwrite what the copy has yet to read.
    other = device.upload(np.full(4, 7.0), stream=streams[1])
    np.testing.assert_array_equal(buffer.numpy(stream=one), np.arange(4.0))
    np.testing.assert_array_equal(other.numpy(), np.full(4, 7.0))


def test_pinned_memory_of_a_copy_that_nobody_can_wait_for_is_not_lent_again(driver, device, streams):
    one = streams[0]
    buffer = device.allocate((4,), np.float64, stream=one)
    driver.failing.update(record=0, synchronize_stream=0)
    with pytest.raises(DeviceError, match="synchronize_stream: told to fail"):
        buffer.copy_from(np.arange(4.0), stream=one)
    driver.failing.clear()
    other = device.upload(np.full(4, 7.0), stream=streams[1])
    np.testing.assert_array_equal(buffer.numpy(stream=one), np.arange(4.0))
    np.testing.assert_array_equal(other.numpy(), np.full(4, 7.0))
    device.close()
    assert driver.leaks() == {}


def test_a_buffer_that_cannot_be_zeroed_is_closed(driver, device, streams):
    driver.failing["fill"] = 0
    with pytest.raises(DeviceError, match="fill: told to fail") as kept:
        device.allocate(4, stream=streams[0], zero=True)
    assert device.pool.statistics.used == 0, kept


def test_the_collector_may_find_everything_at_once(driver):
    """Then weak references are gone before anything is closed, and the order is the collector's."""

    def leave():
        device = driver.device()
        stream = device.create_stream()
        buffer = device.upload(np.arange(4.0), stream=stream)
        circle = [device, stream, buffer, buffer.fetch(), stream.record(), device.foreign_stream(0)]
        circle.append(circle)

    leave()
    gc.collect()
    assert driver.leaks() == {}


@pytest.mark.parametrize("call", ["synchronize_event", "synchronize_stream", "free", "free_pinned", "destroy_event"])
def test_closing_a_device_goes_on_after_a_failure(driver, call):
    device = driver.device()
    stream = device.create_stream()
    buffer = device.upload(np.zeros(4), stream=stream)
    buffer.fetch()
    driver.failing[call] = 0
    with pytest.raises(DeviceError, match=f"{call}: told to fail"):
        device.close()
    assert device.closed
    assert stream.closed
    assert buffer.closed
    assert set(driver.leaks()) <= {"free": {"memory"}, "free_pinned": {"pinned"}, "destroy_event": {"events"}}.get(
        call, set()
    )
    device.close()
