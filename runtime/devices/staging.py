"""Pinned host memory for transfers: each block is taken again only when the copy that used it is done."""

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rocline.runtime.devices.driver import Driver
from rocline.runtime.devices.pool import size_class

if TYPE_CHECKING:
    from rocline.runtime.devices.streams import Event, Stream

CHUNK = 16 << 20
"""Longest single copy between a buffer and an array in bytes: a longer one goes in pieces, so that little is pinned."""

Pinned = tuple[int, int]
"""Address and size of a block."""


class Staging:
    """A cache of pinned memory.

    Args:
        driver: the runtime.
        device_id: which device.
        limit: the most bytes to keep for later, and to have in flight before an upload waits for an earlier one.
    """

    def __init__(self, driver: Driver, device_id: int, limit: int = 4 * CHUNK) -> None:
        self._driver, self._device_id, self._limit = driver, device_id, limit
        self._free: list[Pinned] = []
        self._busy: deque[tuple[Pinned, Event]] = deque()
        # A copy may be collected, and give its block back, in the midst of any line here: appending is all it does.
        self._returned: deque[tuple[Pinned, Event]] = deque()
        # What a copy may use of which nothing could be learnt: not lent again, and freed when the streams are over.
        self._lost: list[Pinned] = []
        self._closed = False

    @contextlib.contextmanager
    def lend(self, nbytes: int, stream: "Stream") -> Iterator[int]:
        """Gives the address of pinned memory that nothing uses, for copies that the block queues on ``stream``.

        Raises:
            DeviceMemoryError: no more memory can be pinned.
        """
        block = self.take(nbytes)
        try:
            yield block[0]
        finally:
            self.give_back(block, self.mark(block, stream))

    def take(self, nbytes: int) -> Pinned:
        """Returns pinned memory that nothing uses, at least ``nbytes`` long.

        Where too much is in flight already, it waits for the oldest copy.

        Raises:
            DeviceMemoryError: no more memory can be pinned.
        """
        size = size_class(nbytes)
        with self._driver.lock:
            block = self._fitting(size)
            while block is None:
                # Whether copies are done is asked only here, since each answer is a call of the runtime.
                self._collect()
                block = self._fitting(size)
                if block is None:
                    if not self._busy or sum(block[1] for block, _ in self._busy) + size <= self._limit:
                        return self._driver.allocate_pinned(self._device_id, size), size
                    if not _over(self._busy[0][1]):
                        self._busy[0][1].synchronize()
            return block

    def mark(self, block: Pinned, stream: "Stream") -> "Event":
        """Returns an event for what ``stream`` has queued with ``block``; if that fails, waits and keeps the block."""
        try:
            return stream.record()
        except BaseException:
            after = self._lost
            try:
                stream.synchronize()
                after = self._free
            finally:
                with self._driver.lock:
                    after.append(block)
            raise

    def give_back(self, block: Pinned, event: "Event") -> None:
        """Takes back pinned memory that is in use until ``event``, which is closed then."""
        self._returned.append((block, event))
        if self._closed:
            # The collector found the device first, and with it the event is gone.
            self._driver.synchronize_device(self._device_id)
            self.close()

    def close(self) -> None:
        """Waits for the copies in flight and frees everything, even where a wait fails."""
        with self._driver.lock, contextlib.ExitStack() as last_first:
            self._closed = True
            self._busy.extend(self._returned)
            self._returned.clear()
            for pointer, _ in (*self._free, *self._lost, *(block for block, _ in self._busy)):
                last_first.callback(self._driver.free_pinned, self._device_id, pointer)
            for _, event in self._busy:
                last_first.callback(event.close)
                if not _over(event):
                    last_first.callback(event.synchronize)
            for blocks in (self._free, self._lost, self._busy):
                blocks.clear()

    def _fitting(self, size: int) -> Pinned | None:
        fitting = [block for block in self._free if size <= block[1] <= 4 * size]
        if not fitting:
            return None
        best = min(fitting, key=lambda block: block[1])
        self._free.remove(best)
        return best

    def _collect(self) -> None:
        while self._returned:
            self._busy.append(self._returned.popleft())
        # Copies of different streams end in any order; one that is late only keeps its own block.
        for _ in range(len(self._busy)):
            block, event = self._busy[0]
            if _over(event) or event.done:
                self._busy.popleft()
                event.close()
                self._free.append(block)
            else:
                self._busy.rotate(-1)
        kept = 0
        # What was used last is what will be used next.
        for block in reversed(list(self._free)):
            if kept + block[1] > self._limit:
                self._free.remove(block)
                self._driver.free_pinned(self._device_id, block[0])
            else:
                kept += block[1]


def _over(event: "Event") -> bool:
    """Whether an event is gone with the device of its stream, which waited for what it stood for."""
    return event.closed or event.device.closed
