"""What a backend gives: raw calls on handles and addresses; order, caching and checks are written once, elsewhere."""

import threading
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from enum import Enum


class Direction(Enum):
    """Between which memories a copy goes; the values are those of hipMemcpyKind and cudaMemcpyKind."""

    TO_DEVICE = 1
    TO_HOST = 2
    ON_DEVICE = 3


class Driver(ABC):
    """One runtime (HIP, CUDA, or the host's memory) in this process.

    Handles of streams and events, and addresses, are whole numbers. Every method raises DeviceError where the runtime
    reports a failure.

    Attributes:
        kind: short name: ``hip``, ``cuda`` or ``cpu``.
        dlpack_type: the number of its memory in DLPack (DLDeviceType).
        host_memory: whether the host may read and write its memory.
        lock: held while memory is allocated or freed, from ordering a copy or a fill until it is queued, and while one
            stream is made to wait for another. A graph capture, which such calls of another thread would break or
            become part of, holds it from start to end.
        handovers: how often a buffer went from one stream to another. As long as it stays the same, a set of buffers
            that was announced to a stream (`Buffer.use`) needs no new announcement.
    """

    kind: str
    dlpack_type: int
    host_memory: bool

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.handovers = 0

    def forked(self) -> None:
        """Called in a forked process at once: the thread that may have held the lock does not exist there."""
        self.lock = threading.RLock()

    @abstractmethod
    def on(self, device_id: int) -> AbstractContextManager[None]:
        """Makes a device this thread's current one for a block, and afterwards the one that was."""

    def check(self) -> None:  # noqa: B027
        """Raises DeviceError if another copy of the runtime has come into the process."""

    @abstractmethod
    def count(self) -> int:
        """Returns how many devices there are."""

    @abstractmethod
    def name(self, device_id: int) -> str:
        """Returns the device's name as its maker gives it."""

    @abstractmethod
    def memory_info(self, device_id: int) -> tuple[int, int]:
        """Returns free and total memory in bytes."""

    @abstractmethod
    def allocate(self, device_id: int, nbytes: int) -> int:
        """Returns the address of new device memory.

        Raises:
            DeviceMemoryError: there is not enough.
        """

    @abstractmethod
    def free(self, device_id: int, pointer: int) -> None:
        """Frees device memory that no queued work uses any more."""

    @abstractmethod
    def allocate_pinned(self, device_id: int, nbytes: int) -> int:
        """Returns the address of new host memory that the device copies from and to without blocking the host.

        Raises:
            DeviceMemoryError: there is not enough.
        """

    @abstractmethod
    def free_pinned(self, device_id: int, pointer: int) -> None:
        """Frees such host memory."""

    @abstractmethod
    def create_stream(self, device_id: int) -> int:
        """Returns a new stream that does not synchronise with the null stream."""

    @abstractmethod
    def destroy_stream(self, stream: int) -> None:
        """Destroys a stream that has nothing left to do."""

    @abstractmethod
    def synchronize_stream(self, stream: int) -> None:
        """Waits until all that was queued on the stream is done."""

    @abstractmethod
    def synchronize_device(self, device_id: int) -> None:
        """Waits until all that was queued on the device, by anyone, is done."""

    @abstractmethod
    def create_event(self, device_id: int) -> int:
        """Returns a new event without a time stamp."""

    @abstractmethod
    def destroy_event(self, event: int) -> None:
        """Destroys an event."""

    @abstractmethod
    def record_event(self, event: int, stream: int) -> None:
        """Lets ``event`` stand for all that was queued on ``stream`` so far."""

    @abstractmethod
    def wait_event(self, stream: int, event: int) -> None:
        """Lets what is queued on ``stream`` from now on wait for what ``event`` stands for."""

    @abstractmethod
    def event_done(self, event: int) -> bool:
        """Returns whether what ``event`` stands for is done."""

    @abstractmethod
    def synchronize_event(self, event: int) -> None:
        """Waits until what ``event`` stands for is done."""

    @abstractmethod
    def copy(self, target: int, source: int, nbytes: int, direction: Direction, stream: int) -> None:
        """Queues a copy; host memory must be pinned and stay until the copy is done."""

    @abstractmethod
    def fill(self, target: int, byte: int, nbytes: int, stream: int) -> None:
        """Queues setting each of ``nbytes`` bytes to ``byte``."""

    @abstractmethod
    def begin_capture(self, stream: int) -> None:
        """Lets what this thread queues on the stream from now on be recorded instead of done."""

    @abstractmethod
    def end_capture(self, stream: int) -> int:
        """Ends the recording and returns the handle of a graph that can be launched."""

    @abstractmethod
    def abandon_capture(self, stream: int) -> None:
        """Ends the recording, whatever became of it, and forgets it."""

    @abstractmethod
    def launch_graph(self, graph: int, stream: int) -> None:
        """Queues on the stream what a graph recorded."""

    @abstractmethod
    def destroy_graph(self, graph: int) -> None:
        """Frees a graph of which no launch is under way."""
