"""The host as a device: its streams do everything at once, so that code written for a GPU runs here too."""

import ctypes
import os
import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from rocline.errors import DeviceError, DeviceMemoryError
from rocline.runtime.devices.driver import Direction, Driver

# A cache line; vector loads of that width need no more.
_ALIGNMENT = 64


class HostDriver(Driver):
    """Memory of this process. Handles of streams and events mean nothing: what is queued is done."""

    kind = "cpu"
    dlpack_type = 1
    host_memory = True

    def __init__(self) -> None:
        super().__init__()
        self._memory: dict[int, np.ndarray[Any, Any]] = {}

    def on(self, device_id: int) -> AbstractContextManager[None]:
        """Does nothing."""
        return nullcontext()

    def count(self) -> int:
        """Returns 1."""
        return 1

    def name(self, device_id: int) -> str:
        """Returns the processor's architecture."""
        return platform.machine()

    def memory_info(self, device_id: int) -> tuple[int, int]:
        """Returns the machine's free and total memory in bytes."""
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")

    def allocate(self, device_id: int, nbytes: int) -> int:
        """Returns the address of new memory, a multiple of 64."""
        try:
            memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
        except MemoryError:
            raise DeviceMemoryError(f"cpu: out of memory; asked {nbytes:,} bytes") from None
        pointer: int = -(-memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT
        self._memory[pointer] = memory
        return pointer

    def free(self, device_id: int, pointer: int) -> None:
        """Frees memory."""
        del self._memory[pointer]

    def allocate_pinned(self, device_id: int, nbytes: int) -> int:
        """The same as `allocate`."""
        return self.allocate(device_id, nbytes)

    def free_pinned(self, device_id: int, pointer: int) -> None:
        """The same as `free`."""
        self.free(device_id, pointer)

    def create_stream(self, device_id: int) -> int:
        """Returns 0."""
        return 0

    def destroy_stream(self, stream: int) -> None:
        """Does nothing."""

    def synchronize_stream(self, stream: int) -> None:
        """Does nothing."""

    def synchronize_device(self, device_id: int) -> None:
        """Does nothing."""

    def create_event(self, device_id: int) -> int:
        """Returns 0."""
        return 0

    def destroy_event(self, event: int) -> None:
        """Does nothing."""

    def record_event(self, event: int, stream: int) -> None:
        """Does nothing."""

    def wait_event(self, stream: int, event: int) -> None:
        """Does nothing."""

    def event_done(self, event: int) -> bool:
        """Returns True."""
        return True

    def synchronize_event(self, event: int) -> None:
        """Does nothing."""

    def copy(self, target: int, source: int, nbytes: int, direction: Direction, stream: int) -> None:
        """Copies at once."""
        ctypes.memmove(target, source, nbytes)

    def fill(self, target: int, byte: int, nbytes: int, stream: int) -> None:
        """Fills at once."""
        ctypes.memset(target, byte, nbytes)

    def begin_capture(self, stream: int) -> None:
        """Raises DeviceError: what is done at once cannot be recorded."""
        raise DeviceError("cpu: the host records no graphs")

    def end_capture(self, stream: int) -> int:
        """Raises DeviceError."""
        raise DeviceError("cpu: no graph is being recorded")

    def abandon_capture(self, stream: int) -> None:
        """Does nothing."""

    def launch_graph(self, graph: int, stream: int) -> None:
        """Raises DeviceError."""
        raise DeviceError("cpu: the host has no graphs")

    def destroy_graph(self, graph: int) -> None:
        """Does nothing."""
