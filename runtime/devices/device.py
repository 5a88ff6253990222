"""Device: the same for every backend, written on its `Driver`."""

import contextlib
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rocline.errors import DeviceError
from rocline.runtime.devices import buffer, dlpack
from rocline.runtime.devices.buffer import Buffer
from rocline.runtime.devices.closing import Closing
from rocline.runtime.devices.driver import Driver
from rocline.runtime.devices.pool import Pool
from rocline.runtime.devices.staging import Staging
from rocline.runtime.devices.streams import Event, Stream

# The handle by which each thread names a stream of its own, in HIP as in CUDA.
_PER_THREAD = 2


@dataclass(frozen=True)
class MemoryInfo:
    """The device's memory in bytes: what is free for anyone, and all of it."""

    free: int
    total: int


class Device(Closing):
    """One GPU, or the host, seen from this process; `rocline.runtime.devices.open_device` makes them.

    Several threads may use a device, its streams and its pool at once. Two devices with the same ``kind`` and
    ``device_id`` are the same hardware: streams, events and buffers of both go together.

    Args:
        driver: the runtime.
        device_id: which device, from 0.
        limit: the most bytes that the pool may hold; None for no limit.

    Attributes:
        kind: ``hip``, ``cuda`` or ``cpu``.
        device_id: which device, from 0.
        name: as its maker gives it.
        driver: the runtime; its ``lock`` keeps other threads from allocating during a graph capture.
        pool: where buffers get their memory.
        staging: where copies to and from the host get theirs.

    Raises:
        DeviceError: there is no such device, or it does not answer.
    """

    def __init__(self, driver: Driver, device_id: int = 0, *, limit: int | None = None) -> None:
        self.kind, self.device_id, self.driver = driver.kind, device_id, driver
        count = driver.count()
        if not 0 <= device_id < count:
            raise DeviceError(f"{self}: no such device, {driver.kind} has {count}")
        self.name = driver.name(device_id)
        self.pool = Pool(driver, device_id, limit)
        self.staging = Staging(driver, device_id)
        self._events: set[int] = set()
        self._idle_events: deque[int] = deque()
        # Changed without a lock: an item for each thread that waits for one.
        self._kept_events: list[int] = []
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._users: weakref.WeakSet[Closing] = weakref.WeakSet()
        self._closing = False
        self.closed = False
        # What is still open when the process ends is closed while the runtime can still be called.
        self._at_exit = weakref.finalize(self, _close_at_exit, weakref.ref(self))

    def __repr__(self) -> str:
        return f"{self.kind}:{self.device_id}"

    def memory_info(self) -> MemoryInfo:
        """Returns the device's free and total memory."""
        self.check_open()
        return MemoryInfo(*self.driver.memory_info(self.device_id))

    def create_stream(self) -> Stream:
        """Returns a new stream that does not synchronise with the null stream."""
        self.check_open()
        with self.driver.lock:
            return Stream(self, self.driver.create_stream(self.device_id), owned=True)

    def foreign_stream(self, handle: int) -> Stream:
        """Returns a stream that another library made, for ordering work with it.

        It has to live until what it was used for here is closed. ``handle`` 0 is the null stream. For a stream that
        was made here, that stream itself is returned.

        Raises:
            DeviceError: ``handle`` is 2 on a GPU: each thread's default stream, which other threads cannot wait for.
        """
        self.check_open()
        if handle == _PER_THREAD and not self.driver.host_memory:
            raise DeviceError(f"{self}: stream {handle} is another one in each thread, expected one that was created")
        with self.driver.lock:
            for stream in self._streams:
                if stream.handle == handle and not stream.closed:
                    return stream
            return Stream(self, handle, owned=False)

    def foreign_event(self, handle: int) -> Event:
        """Returns an event that another library recorded, for `Stream.wait`."""
        self.check_open()
        return Event(self, handle, owned=False)

    def allocate(
        self, shape: int | Sequence[int], dtype: Any = np.uint8, *, stream: Stream, zero: bool = False
    ) -> Buffer:
        """Returns a new buffer from the pool, for use on ``stream``; its contents are whatever was there.

        Args:
            shape: sizes of the axes, or one number.
            dtype: anything that NumPy takes for a dtype, or ``bfloat16``; bytes if left out.
            stream: on which it is used first.
            zero: queue setting all bytes to 0 on ``stream``.

        Raises:
            DeviceMemoryError: the device has not enough memory, or the pool's limit is reached.
            DeviceError: the device or ``stream`` is closed, or the dtype cannot be in a buffer.
        """
        self.check_open()
        made = buffer.allocate(self, shape, dtype, stream)
        return _filled(made, lambda: made.fill(0, stream=stream)) if zero else made

    def upload(self, array: np.ndarray[Any, Any], *, stream: Stream) -> Buffer:
        """Returns a new buffer with a copy of ``array``, queued on ``stream``.

        Raises:
            DeviceError: as `allocate` and `Buffer.copy_from`.
        """
        made = self.allocate(array.shape, array.dtype, stream=stream)
        return _filled(made, lambda: made.copy_from(array, stream=stream))

    def wrap(self, array: np.ndarray[Any, Any]) -> Buffer:
        """Returns a buffer on the array's own memory, which it keeps alive; only the host can.

        Raises:
            DeviceError: this is a GPU, or the array is not contiguous.
        """
        self.check_open()
        return buffer.wrap(self, array)

    def from_dlpack(self, producer: Any, *, stream: Stream) -> Buffer:
        """Returns a buffer on the memory of another library's tensor, without a copy.

        The producer lets ``stream`` wait for its earlier work on the tensor; what it queues later has to be ordered by
        hand. Closing the buffer waits for the work that uses it, then lets go of the tensor.

        Args:
            producer: a contiguous tensor with ``__dlpack__`` and ``__dlpack_device__`` (PyTorch, CuPy, NumPy, ...).
            stream: where it is used first.

        Raises:
            DeviceError: it is on another device, not contiguous, or of a data type that a buffer cannot have.
        """
        self.check_open()
        return dlpack.take(self, producer, stream)

    def close(self) -> None:
        """Waits for this device's own streams, then frees all that was allocated on it; a second call does nothing.

        Buffers, copies and streams that are still open are closed. Memory that a DLPack consumer still holds stays
        until the consumer lets go of it.
        """
        if self.closed:
            return
        with self.driver.lock:
            self._closing = True
            users, streams = list(self._users), list(self._streams)
        # Each step is tried even where one before it fails.
        with contextlib.ExitStack() as last_first:
            last_first.callback(self._at_exit.detach)
            last_first.callback(self._destroy_events)
            last_first.callback(self._end)
            last_first.callback(self.pool.close)
            last_first.callback(self.staging.close)
            for stream in streams:
                if stream.owned:
                    last_first.callback(stream.close)
            for user in users:
                last_first.callback(user.close)

    def same_as(self, other: "Device") -> bool:
        """Whether ``other`` is the same hardware."""
        return self is other or (self.kind == other.kind and self.device_id == other.device_id)

    def misfit(self, stream: Stream) -> str:
        """Returns why no work of this device can be queued on ``stream``; empty if it can."""
        if stream.closed:
            return "closed"
        return "" if self.same_as(stream.device) else "another device's"

    def close_with(self, item: Closing) -> None:
        """Closes ``item`` when this device is closed, unless it is closed or dropped before."""
        with self.driver.lock:
            late = self._closing
            if isinstance(item, Stream):
                self._streams.add(item)
            else:
                self._users.add(item)
        if late:
            # Another thread closes this device, and has asked already what there is.
            item.close()

    def record(self, stream: int) -> Event:
        """Returns an event that stands for all that was queued so far on a stream of this device, by its handle."""
        with self.driver.lock:
            self.check_open()
            try:
                handle = self._idle_events.pop()
            except IndexError:
                handle = self.driver.create_event(self.device_id)
                self._events.add(handle)
            try:
                self.driver.record_event(handle, stream)
            except BaseException:
                self.give_back_event(handle)
                raise
        return Event(self, handle, owned=True)

    def give_back_event(self, handle: int) -> None:
        """Takes back an event; what waits for it already goes on waiting for what it stood for."""
        self._idle_events.append(handle)

    def keep_event(self, handle: int) -> None:
        """Leaves an event undestroyed until `let_go_of_event`, even if this is closed: a thread waits for it."""
        self._kept_events.append(handle)

    def let_go_of_event(self, handle: int) -> None:
        """Ends one `keep_event`."""
        self._kept_events.remove(handle)
        if self.closed:
            self._destroy_events()

    def _destroy_events(self) -> None:
        # Those that are lent out too: an event of a closed device is closed.
        with self.driver.lock, contextlib.ExitStack() as each:
            for handle in self._events.difference(self._kept_events):
                self._events.remove(handle)
                each.callback(self.driver.destroy_event, handle)


def _filled(made: Buffer, fill: Callable[[], None]) -> Buffer:
    """Returns a new buffer after filling it; closes it where that fails, since the traceback would keep it."""
    try:
        fill()
    except BaseException:
        made.close()
        raise
    return made


def _close_at_exit(reference: "weakref.ref[Device]") -> None:
    device = reference()
    if device is not None:
        with contextlib.suppress(DeviceError):
            device.close()
