"""Stream and Event: the same for every backend, written on its `Driver`."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from rocline.errors import DeviceError
from rocline.runtime.devices.closing import Closing, Holders

if TYPE_CHECKING:
    from rocline.runtime.devices.device import Device

# The handles of the current device's null stream, in HIP as in CUDA.
_NULL = (0, 1)


class Stream(Closing):
    """A queue of work on a device, done in order.

    Attributes:
        device: the device.
        handle: the runtime's own handle as a number; 0 on the host.
        owned: whether it was made here, not by another library.
    """

    def __init__(self, device: "Device", handle: int, *, owned: bool) -> None:
        self.device, self.handle, self.owned = device, handle, owned
        self._null = handle in _NULL and not device.driver.host_memory
        # Whoever closes this, and threads that wait.
        self._holders = Holders(handle)
        self.closed = False
        device.close_with(self)

    def __del__(self) -> None:
        # What is left of another library's stream here concerns nobody: memory that it still uses would refer to it.
        if getattr(self, "owned", False) and not self.closed:
            with contextlib.suppress(Exception):
                # Nobody else knows it any more; and the collector must not wait for a lock.
                self._close(contextlib.nullcontext())

    def __repr__(self) -> str:
        return f"stream {self.handle:#x} on {self.device}"

    def synchronize(self) -> None:
        """Waits until all that was queued is done; first for the end of a graph capture, which it would break.

        Raises:
            DeviceError: something that was queued failed, or the stream is closed.
        """
        driver = self.device.driver
        with driver.lock:
            self.check_open()
            self._holders.hold()
        try:
            with self._current():
                driver.synchronize_stream(self.handle)
        finally:
            self._let_go()

    @property
    def awaited(self) -> bool:
        """Whether a thread is in `synchronize`; who holds the driver's lock knows that no other begins to be."""
        return self._holders.several

    def queueing(self) -> AbstractContextManager[Any]:
        """Returns what is held while work is queued here, from ordering it until it is queued: the driver's lock.

        The null stream's handle means the current device's, which this one is for as long.
        """
        return self._as_null() if self._null else self.device.driver.lock

    def record(self) -> "Event":
        """Returns an event that stands for all that was queued so far."""
        with self.queueing():
            # Held from here on, no other thread closes it.
            self.check_open()
            return self.device.record(self.handle)

    def wait(self, other: "Event | Stream") -> None:
        """Lets what is queued here from now on wait, on the device, for an event, or for what a stream has queued.

        A stream that is closed has nothing left to wait for.

        Raises:
            DeviceError: this stream or the event is closed, or ``other`` is on a device of another kind.
        """
        self.check_open()
        if other is self:
            return
        if other.device.kind != self.device.kind:
            raise DeviceError(f"{self}: cannot wait for {other}, which is on a device of another kind")
        if isinstance(other, Event):
            with self.queueing():
                self.check_open()
                other.check_open()
                self.device.driver.wait_event(self.handle, other.handle)
            return
        # An event is recorded on its own device; where it can, this one lends it, since the other may be closed.
        device = self.device if self.device.same_as(other.device) else other.device
        with other.queueing():
            self.check_open()
            if other.closed:
                return
            with device.record(other.handle) as event, self.queueing():
                self.device.driver.wait_event(self.handle, event.handle)

    def close(self) -> None:
        """Waits until all that was queued is done, and destroys the stream; a second call does nothing.

        A stream of another library is waited for, not destroyed.
        """
        self._close(self.device.driver.lock)

    def _close(self, alone: AbstractContextManager[Any]) -> None:
        driver = self.device.driver
        with alone:
            if self.closed:
                return
            self._holders.hold()
        try:
            with self._current():
                driver.synchronize_stream(self.handle)
        except DeviceError:
            # What it used will be taken for free, so it has to be waited for in some way.
            driver.synchronize_device(self.device.device_id)
            raise
        finally:
            with alone:
                # Who holds the lock and has found it open may use it until then.
                first = self._end()
            for _ in range(1 + first):
                self._let_go()

    def _let_go(self) -> None:
        last = self._holders.let_go() is not None
        if last and self.owned:
            self.device.driver.destroy_stream(self.handle)

    def _current(self) -> AbstractContextManager[None]:
        return self.device.driver.on(self.device.device_id) if self._null else contextlib.nullcontext()

    @contextlib.contextmanager
    def _as_null(self) -> Iterator[None]:
        with self.device.driver.lock, self._current():
            yield


class Event(Closing):
    """A point in a stream's work.

    Attributes:
        device: the device.
        handle: the runtime's own handle as a number; 0 on the host.
    """

    def __init__(self, device: "Device", handle: int, *, owned: bool) -> None:
        self.device, self.handle, self._owned = device, handle, owned
        self.closed = False

    def __repr__(self) -> str:
        return f"event {self.handle:#x} on {self.device}"

    def check_open(self) -> None:
        """Raises DeviceError if this, or the device that it was made on, is closed."""
        if self._owned and self.device.closed:
            self._end()
        super().check_open()

    @property
    def done(self) -> bool:
        """Whether all that it stands for is done; never waits."""
        with self._kept():
            return self.device.driver.event_done(self.handle)

    def synchronize(self) -> None:
        """Waits until all that it stands for is done.

        Raises:
            DeviceError: something that it stands for failed, or the event is closed.
        """
        with self._kept():
            self.device.driver.synchronize_event(self.handle)

    def close(self) -> None:
        """Gives the event back; streams that wait for it already go on waiting. A second call does nothing."""
        if self._end() and self._owned:
            self.device.give_back_event(self.handle)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Keeps the runtime's event while the block runs, whoever closes the device."""
        self.device.keep_event(self.handle)
        try:
            self.check_open()
            yield
        finally:
            self.device.let_go_of_event(self.handle)
