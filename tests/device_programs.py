"""Programs on a device's public interface, for the simulated HIP device or a real GPU.

    device_programs.py KIND [--without EDGE] [PROGRAM ...]

Each asserts its values; where an edge is missing, a race detector tells, since values are wrong in some runs only.
`--without` takes one of the runtime's edges out, to show that it is needed.
"""

import argparse
import contextlib
import os
import random
import signal
import threading
from collections import deque
from unittest import mock

import numpy as np

from rocline import DeviceError, DeviceMemoryError
from rocline.runtime.devices import open_device
from rocline.runtime.devices.host_copy import HostCopy
from rocline.runtime.devices.pool import Pool
from rocline.runtime.devices.staging import Staging
from rocline.runtime.devices.storage import Storage
from rocline.runtime.devices.streams import Stream

PROGRAMS = {}
SIZE = 4096


def program(function):
    PROGRAMS[function.__name__] = function
    return function


def message(use):
    try:
        use()
    except DeviceError as error:
        return str(error)
    return ""


def numbers(start, size=SIZE):
    return np.arange(start, start + size, dtype=np.float32)


@program
def there_and_back(device):
    stream = device.create_stream()
    buffer = device.upload(numbers(0), stream=stream)
    copy = device.allocate((64, 64), np.float32, stream=stream)
    copy.copy_from(buffer, stream=stream)
    np.testing.assert_array_equal(copy.numpy().ravel(), numbers(0))
    out = np.empty(SIZE, np.float32)
    copy.copy_to(out, stream=stream)
    np.testing.assert_array_equal(out, numbers(0))
    assert device.allocate((0, 3), stream=stream).numpy().shape == (0, 3)


@program
def a_buffer_wanders_between_streams(device):
    streams = [device.create_stream() for _ in range(3)]
    buffers = [device.upload(numbers(n), stream=streams[n]) for n in range(3)]
    expected = [numbers(n) for n in range(3)]
    for turn in range(9):
        source, target = turn % 3, (turn + 1) % 3
        buffers[target].copy_from(buffers[source], stream=streams[turn * turn % 3])
        buffers[source].copy_from(numbers(10 * turn), stream=streams[turn % 3])
        expected[target], expected[source] = expected[source], numbers(10 * turn)
    for buffer, values in zip(buffers, expected, strict=True):
        np.testing.assert_array_equal(buffer.numpy(), values)


@program
def a_reader_is_not_overtaken(device):
    one, two = device.create_stream(), device.create_stream()
    buffer, copy = device.upload(numbers(0), stream=one), device.allocate((SIZE,), np.float32, stream=two)
    for turn in range(4):
        copy.copy_from(buffer, stream=two)
        buffer.copy_from(numbers(turn + 1), stream=one)
        np.testing.assert_array_equal(copy.numpy(), numbers(turn))


@program
def memory_goes_to_another_stream(device):
    one, two = device.create_stream(), device.create_stream()
    kept = device.allocate((SIZE,), np.float32, stream=one)
    pointers = set()
    for turn in range(6):
        stream = (one, two)[turn % 2]
        buffer = device.upload(numbers(turn), stream=stream)
        pointers.add(buffer.pointer)
        kept.copy_from(buffer, stream=stream)
        buffer.close()
    assert len(pointers) == 1
    np.testing.assert_array_equal(kept.numpy(), numbers(5))


@program
def host_memory_changes_at_once(device):
    stream = device.create_stream()
    array, buffers = numbers(0), []
    for turn in range(8):
        array[:] = numbers(turn)
        buffers.append(device.upload(array, stream=stream))
    array[:] = -1
    for turn, buffer in enumerate(buffers):
        np.testing.assert_array_equal(buffer.numpy(), numbers(turn))


@program
def copies_are_fetched_late(device):
    stream = device.create_stream()
    buffer, late = device.allocate((SIZE,), np.float32, stream=stream), deque()
    for turn in range(8):
        buffer.copy_from(numbers(turn), stream=stream)
        late.append((turn, buffer.fetch()))
        if len(late) > 2:
            turn, copy = late.popleft()
            np.testing.assert_array_equal(copy.numpy(), numbers(turn))
    # What nobody waits for goes back too.


@program
def threads_share_a_device(device):
    failures = []

    def work(number):
        try:
            with device.create_stream() as stream:
                for turn in range(8):
                    with device.upload(numbers(100 * number + turn), stream=stream) as buffer:
                        np.testing.assert_array_equal(buffer.numpy(), numbers(100 * number + turn))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


@program
def threads_share_a_buffer(device):
    """Handed from thread to thread, each with its own stream."""
    buffer = device.upload(numbers(0), stream=device.create_stream())

    def work(turn):
        with device.create_stream() as stream:
            np.testing.assert_array_equal(buffer.numpy(stream=stream), numbers(turn))
            buffer.copy_from(numbers(turn + 1), stream=stream)

    for turn in range(4):
        thread = threading.Thread(target=work, args=(turn,))
        thread.start()
        thread.join()
    np.testing.assert_array_equal(buffer.numpy(stream=device.create_stream()), numbers(4))


@program
def a_foreign_stream_takes_part(device):
    driver, stream = device.driver, device.create_stream()
    with contextlib.ExitStack() as theirs:
        handle = driver.create_stream(device.device_id)
        theirs.callback(driver.destroy_stream, handle)
        event = driver.create_event(device.device_id)
        theirs.callback(driver.destroy_event, event)
        foreign = theirs.enter_context(device.foreign_stream(handle))
        buffer = device.upload(numbers(1), stream=foreign)
        copy = device.allocate((SIZE,), np.float32, stream=stream)
        copy.copy_from(buffer, stream=stream)
        buffer.use(foreign, write=True)
        driver.fill(buffer.pointer, 0, 16, handle)
        driver.record_event(event, handle)
        with device.foreign_event(event) as ready:
            stream.wait(ready)
        np.testing.assert_array_equal(copy.numpy(), numbers(1))
        np.testing.assert_array_equal(buffer.numpy(stream=stream)[:4], np.zeros(4))


@program
def the_null_stream_takes_part(device):
    """It does not synchronise with ours, so it needs events as any other does."""
    stream, null = device.create_stream(), device.foreign_stream(0)
    buffer = device.upload(numbers(1), stream=stream)
    copy = device.allocate((SIZE,), np.float32, stream=null)
    copy.copy_from(buffer, stream=null)
    buffer.fill(0, stream=stream)
    np.testing.assert_array_equal(copy.numpy(stream=stream), numbers(1))


@program
def tensors_are_exchanged(device):
    one, two = device.create_stream(), device.create_stream()
    source = device.upload(numbers(2), stream=one)
    taken = device.from_dlpack(source, stream=two)
    assert taken.pointer == source.pointer
    copy = device.allocate((SIZE,), np.float32, stream=two)
    copy.copy_from(taken, stream=two)
    taken.close()
    source.fill(0, stream=one)
    np.testing.assert_array_equal(copy.numpy(), numbers(2))
    unordered = source.__dlpack__(stream=-1)
    source.close()
    del unordered
    device.upload(numbers(3), stream=two).numpy()


@program
def uses_come_in_any_order(device):
    """Many uses drawn by lot: each buffer holds what it would if all were done at once."""
    lot = random.Random(5)
    streams = [device.foreign_stream(0), *(device.create_stream() for _ in range(3))]
    buffers = [device.upload(numbers(n), stream=streams[n]) for n in range(4)]
    expected, late = [numbers(n) for n in range(4)], deque()
    for turn in range(400):
        stream, which, other = lot.choice(streams), lot.randrange(4), lot.randrange(4)
        buffer, use = buffers[which], lot.choice(("write", "zero", "copy", "fetch", "read", "renew", "trim"))
        if use == "write":
            buffer.copy_from(numbers(turn), stream=stream)
            expected[which] = numbers(turn)
        elif use == "zero":
            buffer.fill(0, stream=stream)
            expected[which] = np.zeros(SIZE, np.float32)
        elif use == "copy":
            buffer.copy_from(buffers[other], stream=stream)
            expected[which] = expected[other]
        elif use == "fetch":
            late.append((buffer.fetch(stream=stream), expected[which]))
        elif use == "read":
            np.testing.assert_array_equal(buffer.numpy(stream=stream), expected[which])
        elif use == "renew":
            buffers[which], expected[which] = device.upload(numbers(turn), stream=stream), numbers(turn)
        elif not turn % 5:
            device.pool.trim()
        while len(late) > (4 if turn < 399 else 0):
            copy, values = late.popleft()
            np.testing.assert_array_equal(copy.numpy(), values)


@program
def memory_runs_out(device):
    stream = device.create_stream()
    asked = 8 * device.memory_info().total // 2**21 * 2**21
    try:
        device.allocate(asked, stream=stream)
    except DeviceMemoryError as error:
        assert f"asked {asked:,} bytes" in str(error), error
    else:
        raise AssertionError(f"{asked:,} bytes were given")
    np.testing.assert_array_equal(device.upload(numbers(0), stream=stream).numpy(), numbers(0))


@program
def closed_things_say_so(device):
    stream = device.create_stream()
    buffer = device.allocate(16, stream=stream)
    buffer.close()
    assert message(buffer.numpy).endswith("closed")


@program
def a_forked_process_says_so(device):
    """At once, where the runtime, whose threads are not there, would let it wait for ever."""
    buffer = device.upload(numbers(0), stream=device.create_stream())
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        np.testing.assert_array_equal(buffer.numpy(), numbers(0))
        return
    signal.alarm(60)
    said = [message(use) for use in (buffer.numpy, device.create_stream, device.close)]
    os._exit(not all("was in use before this process was forked" in text for text in said))


@program
def things_are_left_open(device):
    stream = device.create_stream()
    left = [device.upload(numbers(0), stream=stream), stream.record()]
    left.append(left[0].fetch())
    device.left = left


def without(edge):
    """Takes an edge of the runtime out."""
    changes = {
        # A use on another stream waits for nothing.
        "handover": (Storage, "use", lambda self, stream, write: None),
        # A write does not wait for readers.
        "reader": (Storage, "use", _use_without_readers),
        # Memory that another stream gave back is handed out as it is.
        "reuse": (Pool, "_reuse", lambda self, size, stream: (self._free[size] or [None]).pop()),
        # Pinned memory is taken again while its copy is in flight.
        "staging": (Staging, "_collect", _collect_at_once),
        # The host reads what a copy has not brought yet.
        "fetch": (HostCopy, "_wait", _read_at_once),
        # A stream waits for nothing.
        "wait": (Stream, "wait", lambda self, other: None),
    }
    owner, name, replacement = changes[edge]
    return mock.patch.object(owner, name, replacement)


def _use_without_readers(self, stream, write):
    if self.writer is not None and self.writer is not stream:
        stream.wait(self.writer)
    if write:
        self.writer = stream


def _collect_at_once(self):
    self._busy.extend(self._returned)
    self._returned.clear()
    while self._busy:
        self._free.append(self._busy.popleft()[0])


def _read_at_once(self):
    with mock.patch.object(self._event, "synchronize"):
        return _wait_for_copy(self)


_wait_for_copy = HostCopy._wait


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("--without", metavar="EDGE")
    parser.add_argument("programs", nargs="*")
    arguments = parser.parse_intermixed_args()
    with without(arguments.without) if arguments.without else contextlib.nullcontext():
        for name in arguments.programs or PROGRAMS:
            with contextlib.nullcontext() if name == "things_are_left_open" else open_device(arguments.kind) as device:
                # The runtime closes at exit what nobody closed.
                PROGRAMS[name](device or open_device(arguments.kind))
            print(name, flush=True)


if __name__ == "__main__":
    main()
