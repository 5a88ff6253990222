"""A cache of device memory, ordered by streams: what a stream gave back it may have again without any wait."""

import contextlib
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rocline.errors import DeviceError, DeviceMemoryError
from rocline.runtime.devices.driver import Driver

if TYPE_CHECKING:
    from rocline.runtime.devices.streams import Stream

_SMALLEST, _LARGEST_STEP = 512, 2 << 20


@dataclass(eq=False, slots=True)
class Block:
    """Memory of the device.

    Attributes:
        pointer: its address.
        nbytes: its size, a size class.
        streams: where it was used since it was allocated or handed out.
        strangers: whether a DLPack consumer may have used it on a stream of which nothing is known.
    """

    pointer: int
    nbytes: int
    streams: "set[Stream]" = field(default_factory=set)
    strangers: bool = False


@dataclass(frozen=True)
class Statistics:
    """Bytes and counts of a pool.

    Attributes:
        used: bytes handed out, in size classes.
        cached: bytes kept for later.
        peak: the most that ``used`` ever was.
        allocations: how often the device was asked for memory.
        reuses: how often a cached block was handed out instead.
    """

    used: int
    cached: int
    peak: int
    allocations: int
    reuses: int


class Pool:
    """Hands out blocks and keeps what comes back.

    A block that one stream used goes back to that stream as it is: the order on the stream is what makes it safe. On
    another stream the work that may still use it is waited for on the device, by an event. Several threads may use a
    pool.

    Args:
        driver: the runtime.
        device_id: which device.
        limit: the most bytes that it may hold, handed out or kept; None for no limit.
    """

    def __init__(self, driver: Driver, device_id: int, limit: int | None = None) -> None:
        self.limit = limit
        self._driver, self._device_id = driver, device_id
        self._free: defaultdict[int, list[Block]] = defaultdict(list)
        # A buffer may be collected, and give its block back, in the midst of any line here: appending is all it does.
        self._returned: deque[Block] = deque()
        self._closed = False
        self._used = self._cached = self._peak = self._allocations = self._reuses = 0

    @property
    def statistics(self) -> Statistics:
        """What the pool holds now."""
        with self._driver.lock:
            self._collect()
            return Statistics(self._used, self._cached, self._peak, self._allocations, self._reuses)

    def take(self, nbytes: int, stream: "Stream") -> Block:
        """Returns a block of at least ``nbytes`` that work queued on ``stream`` from now on may use.

        Raises:
            DeviceMemoryError: the device has not enough memory, or the limit is reached.
            DeviceError: the device is closed.
        """
        size = size_class(nbytes)
        with self._driver.lock:
            if self._closed:
                raise DeviceError(f"{self._name}: closed")
            self._collect()
            block = self._reuse(size, stream) or self._allocate(size, nbytes)
            block.streams = {stream}
            block.strangers = False
            self._used += size
            self._peak = max(self._peak, self._used)
            return block

    def give_back(self, block: Block) -> None:
        """Takes ``block`` back; work that uses it may still be queued on the streams it names."""
        self._returned.append(block)
        if self._closed:
            self.trim()

    def close(self) -> None:
        """Frees what is kept, and from now on what comes back; nothing more is handed out."""
        with self._driver.lock:
            self._closed = True
            self.trim()

    def trim(self) -> int:
        """Frees what is kept for later, after waiting for the work that uses it; returns how many bytes that were."""
        with self._driver.lock:
            self._collect()
            blocks = [block for blocks in self._free.values() for block in blocks]
            self._wait(blocks)
            with contextlib.ExitStack() as each:
                for block in blocks:
                    self._free[block.nbytes].remove(block)
                    self._cached -= block.nbytes
                    each.callback(self._driver.free, self._device_id, block.pointer)
            return sum(block.nbytes for block in blocks)

    def _collect(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._free[block.nbytes].append(block)
            self._used -= block.nbytes
            self._cached += block.nbytes

    def _reuse(self, size: int, stream: "Stream") -> Block | None:
        blocks = self._free[size]
        if not blocks:
            return None

        def waits(block: Block) -> tuple[bool, int]:
            return block.strangers, sum(not other.closed for other in block.streams if other is not stream)

        block = min(blocks, key=waits)
        blocks.remove(block)
        try:
            if block.strangers:
                self._driver.synchronize_device(self._device_id)
            for other in block.streams:
                stream.wait(other)
        except BaseException:
            blocks.append(block)
            raise
        self._cached -= size
        self._reuses += 1
        return block

    def _allocate(self, size: int, nbytes: int) -> Block:
        if self.limit is not None and self._used + self._cached + size > self.limit:
            self.trim()
            if self._used + size > self.limit:
                raise DeviceMemoryError(
                    f"{self._name}: the pool's limit of {self.limit:,} bytes is reached; asked {nbytes:,} bytes, "
                    f"{self._used:,} in use"
                )
        pointer = self._retried(lambda: self._driver.allocate(self._device_id, size), nbytes)
        self._allocations += 1
        return Block(pointer, size)

    def _retried(self, allocate: Callable[[], int], nbytes: int) -> int:
        try:
            return allocate()
        except DeviceMemoryError:
            self.trim()
        try:
            return allocate()
        except DeviceMemoryError as error:
            raise DeviceMemoryError(f"{error}, {self._used:,} in use here") from None

    @property
    def _name(self) -> str:
        return f"{self._driver.kind}:{self._device_id}"

    def _wait(self, blocks: list[Block]) -> None:
        if any(block.strangers for block in blocks):
            self._driver.synchronize_device(self._device_id)
        for stream in {stream for block in blocks for stream in block.streams if not stream.closed}:
            stream.synchronize()


def size_class(nbytes: int) -> int:
    """Returns the size of the block for ``nbytes``: at most an eighth, or 2 MiB, or 512 bytes more."""
    step = min(max(_SMALLEST, 1 << max(nbytes.bit_length() - 4, 0)), _LARGEST_STEP)
    return max(-(-nbytes // step) * step, _SMALLEST)
