"""Pinned host memory for transfers: each block is taken again only when the copy that used it is done."""

from collections import deque
from typing import TYPE_CHECKING

from rocline.runtime.devices.driver import Driver
from rocline.runtime.devices.pool import size_class

if TYPE_CHECKING:
    from rocline.runtime.devices.base import Event

CHUNK = 16 << 20
"""Longest single copy of an upload in bytes: a longer one goes in pieces, so that little memory is pinned."""


class Staging:
    """A cache of pinned memory.

    Args:
        driver: the runtime.
        device_id: which device.
        limit: the most bytes to keep for later.
    """

    def __init__(self, driver: Driver, device_id: int, limit: int = 4 * CHUNK) -> None:
        self._driver, self._device_id, self._limit = driver, device_id, limit
        self._free: list[tuple[int, int]] = []
        self._busy: deque[tuple[int, int, Event]] = deque()
        self._returned: deque[tuple[int, int, Event | None]] = deque()

    def take(self, nbytes: int) -> tuple[int, int]:
        """Returns address and size of pinned memory that nothing uses, at least ``nbytes`` long.

        Where too much is in flight already, it waits for the oldest copy.

        Raises:
            DeviceMemoryError: no more memory can be pinned.
        """
        size = size_class(nbytes)
        with self._driver.lock:
            self._collect()
            while True:
                fitting = [block for block in self._free if size <= block[1] <= 4 * size]
                if fitting:
                    block = min(fitting, key=lambda block: block[1])
                    self._free.remove(block)
                    return block
                if not self._busy or sum(block[1] for block in self._busy) + size <= self._limit:
                    return self._driver.allocate_pinned(self._device_id, size), size
                self._busy[0][2].synchronize()
                self._collect()

    def give_back(self, block: tuple[int, int], event: "Event | None" = None) -> None:
        """Takes pinned memory back that is in use until ``event``, which is closed then; no event: it is not in use."""
        self._returned.append((*block, event))

    def close(self) -> None:
        """Waits for the copies in flight and frees everything."""
        with self._driver.lock:
            self._collect()
            for pointer, size, event in self._busy:
                event.synchronize()
                event.close()
                self._free.append((pointer, size))
            self._busy.clear()
            while self._free:
                self._driver.free_pinned(self._device_id, self._free.pop()[0])

    def _collect(self) -> None:
        while self._returned:
            pointer, size, event = self._returned.popleft()
            if event is None:
                self._free.append((pointer, size))
            else:
                self._busy.append((pointer, size, event))
        # Copies of different streams end in any order; one that is late only keeps its own block.
        for _ in range(len(self._busy)):
            pointer, size, event = self._busy.popleft()
            if event.done:
                event.close()
                self._free.append((pointer, size))
            else:
                self._busy.append((pointer, size, event))
        kept = 0
        for block in list(self._free):
            kept += block[1]
            if kept > self._limit:
                self._free.remove(block)
                self._driver.free_pinned(self._device_id, block[0])
