"""The caches of device memory and of pinned memory: what is handed out again, when, and what it waits for."""

import threading

import numpy as np
import pytest
from fake_driver import FakeDriver

from rocline import DeviceError, DeviceMemoryError
from rocline.runtime.devices.pool import Statistics, size_class
from rocline.runtime.devices.staging import CHUNK, Staging


@pytest.fixture
def driver():
    return FakeDriver()


@pytest.mark.parametrize(
    ("nbytes", "size"),
    [
        (0, 512),
        (1, 512),
        (512, 512),
        (513, 1024),
        (4096, 4096),
        (4097, 4608),
        (1 << 20, 1 << 20),
        ((1 << 20) + 1, (1 << 20) + (1 << 17)),
        (100 << 20, 100 << 20),
        ((100 << 20) + 1, 102 << 20),
    ],
)
def test_size_classes(nbytes, size):
    assert size_class(nbytes) == size


def test_size_classes_waste_little():
    for nbytes in range(1, 1 << 20, 379):
        size = size_class(nbytes)
        assert nbytes <= size <= max(nbytes * 9 / 8, nbytes + 512)
        assert size_class(size) == size


def test_a_stream_gets_its_own_memory_back_without_a_wait(driver, device, streams):
    one = streams[0]
    buffer = device.allocate(1000, stream=one)
    pointer = buffer.pointer
    buffer.fill(1, stream=one)
    buffer.close()
    driver.log.clear()
    again = device.allocate(900, stream=one)
    assert again.pointer == pointer
    assert driver.log == []
    assert device.pool.statistics == Statistics(used=1024, cached=0, peak=1024, allocations=1, reuses=1)


def test_another_stream_waits_for_the_last_user(driver, device, streams):
    one, two, _ = streams
    buffer = device.allocate(1000, stream=one)
    pointer = buffer.pointer
    buffer.fill(1, stream=one)
    buffer.close()
    driver.log.clear()
    again = device.allocate(1000, stream=two)
    assert again.pointer == pointer
    assert driver.logged("wait") == [("wait", two.handle, one.handle)]
    again.fill(2, stream=two)
    two.synchronize()
    one.synchronize()
    assert again.numpy()[0] == 2


def test_every_stream_that_used_a_buffer_is_waited_for(driver, device, streams):
    one, two, three = streams
    buffer = device.allocate(1000, stream=one)
    targets = [device.allocate(1000, stream=stream) for stream in (two, three)]
    for target in targets:
        target.copy_from(buffer, stream=target.stream)
    buffer.close()
    driver.log.clear()
    device.allocate(1000, stream=one)
    waited = driver.logged("wait")
    assert sorted(waited) == sorted([("wait", one.handle, two.handle), ("wait", one.handle, three.handle)])


def test_blocks_that_need_no_wait_come_first(driver, device, streams):
    one, two, _ = streams
    theirs, own = device.allocate(1000, stream=one), device.allocate(1000, stream=two)
    pointer = own.pointer
    theirs.close()
    own.close()
    driver.log.clear()
    assert device.allocate(1000, stream=two).pointer == pointer
    assert driver.logged("wait") == []


def test_streams_that_are_closed_are_not_waited_for(driver, device, streams):
    one, two, _ = streams
    device.allocate(1000, stream=one).close()
    one.close()
    driver.log.clear()
    device.allocate(1000, stream=two)
    assert driver.log == []


def test_a_failed_wait_keeps_the_block(driver, device, streams):
    one, two, _ = streams
    device.allocate(1000, stream=one).close()
    driver.failing["wait"] = 0
    with pytest.raises(DeviceError, match="wait: told to fail"):
        device.allocate(1000, stream=two)
    driver.failing.clear()
    assert device.pool.statistics.cached == 1024
    device.allocate(1000, stream=two)
    assert device.pool.statistics == Statistics(used=0, cached=1024, peak=1024, allocations=1, reuses=1)


def test_memory_of_a_stranger_is_reused_after_the_whole_device(driver, device, streams):
    one = streams[0]
    buffer = device.allocate(1000, stream=one)
    buffer.storage.strangers = True
    buffer.close()
    driver.log.clear()
    again = device.allocate(1000, stream=one)
    assert driver.log == [("synchronize_device",)]
    again.close()
    driver.log.clear()
    device.allocate(1000, stream=one)
    assert driver.log == []


def test_trim_waits_and_frees(driver, device, streams):
    one, two, _ = streams
    kept = device.allocate(1000, stream=one)
    dropped = [device.allocate(1000, stream=stream) for stream in (one, two)]
    for buffer in dropped:
        buffer.fill(0, stream=buffer.stream)
        buffer.close()
    driver.log.clear()
    assert device.pool.trim() == 2048
    assert [entry[0] for entry in driver.log] == ["synchronize_stream"] * 2 + ["free"] * 2
    statistics = device.pool.statistics
    assert (statistics.used, statistics.cached) == (1024, 0)
    assert device.pool.trim() == 0
    assert not kept.closed


def test_a_full_device_is_trimmed_and_asked_again(driver, device, streams):
    driver.capacity = 4096
    device.allocate(2048, stream=streams[0]).close()
    held = device.allocate(3000, stream=streams[0])
    with pytest.raises(DeviceMemoryError, match=r"asked 2,048 bytes, 3,072 in use here"):
        device.allocate(2048, stream=streams[0])
    held.close()
    device.allocate(2048, stream=streams[0])


def test_a_limit_counts_what_is_cached(driver):
    with driver.device(limit=4096) as device:
        stream = device.create_stream()
        device.allocate(2048, stream=stream).close()
        held = device.allocate(3000, stream=stream)
        assert [entry[0] for entry in driver.log if entry[0] in ("allocate", "free")] == [
            "allocate",
            "free",
            "allocate",
        ]
        with pytest.raises(DeviceMemoryError, match=r"hip:0: the pool's limit of 4,096 bytes .* 3,072 in use"):
            device.allocate(2048, stream=stream)
        held.close()
    assert driver.leaks() == {}


def test_buffers_that_outlive_their_device_free_their_memory(driver):
    device = driver.device()
    stream = device.create_stream()
    buffer = device.upload(np.arange(4.0), stream=stream)
    capsule = buffer.__dlpack__(stream=-1)
    device.close()
    assert buffer.closed
    assert list(driver.leaks()) == ["memory"]
    del capsule
    assert driver.leaks() == {}


def test_threads_share_a_pool(driver, device):
    failures = []

    def work(number):
        try:
            with device.create_stream() as stream:
                for turn in range(60):
                    with device.upload(np.full(256, 100 * number + turn), stream=stream) as buffer:
                        if not np.all(buffer.numpy() == 100 * number + turn):
                            failures.append((number, turn))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert device.pool.statistics.used == 0


def test_pinned_memory_is_reused_only_when_its_copy_is_done(driver, device, streams):
    one = streams[0]
    first = device.upload(np.full(4, 1.0), stream=one)
    second = device.upload(np.full(4, 2.0), stream=one)
    assert len(driver.logged("allocate_pinned")) == 2
    one.synchronize()
    device.upload(np.full(4, 3.0), stream=one)
    assert driver.logged("allocate_pinned") == []
    assert (first.numpy()[0], second.numpy()[0]) == (1, 2)


def test_too_much_in_flight_waits_for_the_oldest(driver, device, streams):
    device.staging = Staging(driver, 0, limit=2048)
    buffers = [device.upload(np.full(128, float(n)), stream=streams[0]) for n in range(5)]
    assert len(driver.logged("allocate_pinned")) == 2
    for number, buffer in enumerate(buffers):
        assert np.all(buffer.numpy() == number)


def test_pinned_memory_beyond_the_limit_is_freed(driver, device, streams):
    device.staging = Staging(driver, 0, limit=1024)
    buffer = device.upload(np.zeros(1000), stream=streams[0])
    streams[0].synchronize()
    driver.log.clear()
    buffer.numpy()
    assert driver.logged("free_pinned") == [("free_pinned", 8192)]


def test_pinned_memory_that_was_used_last_is_kept(driver, device, streams):
    device.staging = Staging(driver, 0, limit=8192)
    small, large = (device.allocate(nbytes, stream=streams[0]) for nbytes in (1024, 8192))
    small.numpy()
    large.numpy()
    driver.log.clear()
    large.numpy()
    assert driver.logged("allocate_pinned", "free_pinned") == [("free_pinned", 1024)]


def test_long_copies_go_in_pieces(driver, device, streams):
    array = np.arange((2 * CHUNK + 4096) // 8)
    buffer = device.upload(array, stream=streams[0])
    up = [("copy", "TO_DEVICE", nbytes, streams[0].handle) for nbytes in (CHUNK, CHUNK, 4096)]
    assert driver.logged("copy") == up
    device.staging.close()
    device.staging = Staging(driver, 0)
    out = np.empty_like(array)
    for read in (buffer.numpy, lambda: buffer.copy_to(out, stream=streams[1]) or out):
        np.testing.assert_array_equal(read(), array)
        copies, pinned = driver.logged("copy"), sum(driver.live["pinned"].values())
        assert [entry[1:3] for entry in copies] == [("TO_HOST", nbytes) for nbytes in (CHUNK, CHUNK, 4096)]
        assert pinned <= 3 * CHUNK
    column = np.empty((len(array), 2), array.dtype)[:, 0]
    buffer.copy_to(column, stream=streams[1])
    np.testing.assert_array_equal(column, array)


def test_a_long_copy_that_fails_on_its_way_leaves_nothing(driver, device, streams):
    buffer = device.allocate(3 * CHUNK, stream=streams[0])
    driver.failing["copy"] = 2
    with pytest.raises(DeviceError, match="copy: told to fail"):
        buffer.numpy()
    driver.failing.clear()
    device.staging.close()
    assert "pinned" not in driver.leaks()
