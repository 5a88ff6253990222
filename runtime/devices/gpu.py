"""The part of HIP and of CUDA's runtime that rocline uses: the same calls under two prefixes, checked in one place."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rocline.errors import DeviceError, DeviceMemoryError
from rocline.runtime.devices.driver import Direction, Driver

# Of hipError_t and cudaError_t; the numbers are the same in both.
_OUT_OF_MEMORY, _NOT_READY = 2, 600
_NON_BLOCKING = 1
_NO_TIMING = 2
_UNLESS = object()
_THREAD_LOCAL = 1

_ALLOCATION = "asked {0:,} bytes"
_COPY = "{2:,} bytes, {3.name}, stream {4:#x}"
_FILL = "{2:,} bytes, stream {3:#x}"


class GpuDriver(Driver):
    """A runtime whose Python bindings return a tuple for each call: the status, then what the call gives.

    Args:
        bindings: the module with the calls.
        prefix: what their names begin with: ``hip`` or ``cuda``.
        pinned: what follows the prefix in the names of the calls that allocate and free pinned host memory.
    """

    host_memory = False

    def __init__(self, bindings: Any, prefix: str, pinned: tuple[str, str]) -> None:
        super().__init__()
        self._bindings, self._prefix = bindings, prefix
        self._allocate_pinned, self._free_pinned = pinned
        self._calls: dict[str, Callable[..., tuple[Any, ...]]] = {}
        kinds = getattr(bindings, f"{prefix}MemcpyKind")
        self._kinds = {direction: kinds(direction.value) for direction in Direction}

    def forked(self) -> None:
        """Lets every call fail from now on: the runtime does not live on in a forked process, and may wait for ever."""
        super().forked()
        self._bindings = _Forked(self.kind)
        self._calls.clear()

    @contextlib.contextmanager
    def on(self, device_id: int) -> Iterator[None]:
        """Makes a device current for this thread, and afterwards the one that was."""
        before = self._call("GetDevice")
        if before == device_id:
            yield
            return
        self._call("SetDevice", device_id)
        try:
            yield
        finally:
            self._call("SetDevice", before)

    def count(self) -> int:
        """Returns how many devices the runtime shows."""
        count: int = self._call("GetDeviceCount")
        return count

    def name(self, device_id: int) -> str:
        """Returns the device's name as its maker gives it."""
        name = self._call("GetDeviceProperties", device_id).name
        return name.decode(errors="replace") if isinstance(name, bytes) else str(name)

    def memory_info(self, device_id: int) -> tuple[int, int]:
        """Returns free and total memory in bytes."""
        with self.on(device_id):
            free, total = self._call("MemGetInfo")
            return free, total

    def allocate(self, device_id: int, nbytes: int) -> int:
        """Returns the address of new device memory."""
        with self.on(device_id):
            return int(self._call("Malloc", nbytes, about=_ALLOCATION))

    def free(self, device_id: int, pointer: int) -> None:
        """Frees device memory."""
        with self.on(device_id):
            self._call("Free", pointer)

    def allocate_pinned(self, device_id: int, nbytes: int) -> int:
        """Returns the address of new pinned host memory."""
        with self.on(device_id):
            return int(self._call(self._allocate_pinned, nbytes, 0, about=_ALLOCATION))

    def free_pinned(self, device_id: int, pointer: int) -> None:
        """Frees pinned host memory."""
        self._call(self._free_pinned, pointer)

    def create_stream(self, device_id: int) -> int:
        """Returns a new stream that does not synchronise with the null stream."""
        with self.on(device_id):
            return int(self._call("StreamCreateWithFlags", _NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        """Destroys a stream."""
        self._call("StreamDestroy", stream)

    def synchronize_stream(self, stream: int) -> None:
        """Waits for a stream."""
        self._call("StreamSynchronize", stream)

    def synchronize_device(self, device_id: int) -> None:
        """Waits for the whole device."""
        with self.on(device_id):
            self._call("DeviceSynchronize")

    def create_event(self, device_id: int) -> int:
        """Returns a new event without a time stamp."""
        with self.on(device_id):
            return int(self._call("EventCreateWithFlags", _NO_TIMING))

    def destroy_event(self, event: int) -> None:
        """Destroys an event."""
        self._call("EventDestroy", event)

    def record_event(self, event: int, stream: int) -> None:
        """Records an event."""
        self._call("EventRecord", event, stream)

    def wait_event(self, stream: int, event: int) -> None:
        """Lets a stream wait for an event."""
        self._call("StreamWaitEvent", stream, event, 0)

    def event_done(self, event: int) -> bool:
        """Returns whether what an event stands for is done."""
        return self._call("EventQuery", event, unless=_NOT_READY) is not _UNLESS

    def synchronize_event(self, event: int) -> None:
        """Waits for an event."""
        self._call("EventSynchronize", event)

    def copy(self, target: int, source: int, nbytes: int, direction: Direction, stream: int) -> None:
        """Queues a copy."""
        if nbytes:
            self._call("MemcpyAsync", target, source, nbytes, self._kinds[direction], stream, about=_COPY)

    def fill(self, target: int, byte: int, nbytes: int, stream: int) -> None:
        """Queues a fill."""
        if nbytes:
            self._call("MemsetAsync", target, byte, nbytes, stream, about=_FILL)

    def begin_capture(self, stream: int) -> None:
        """Begins recording this thread's work on a stream; calls that would break it fail in this thread only."""
        mode = getattr(self._bindings, f"{self._prefix}StreamCaptureMode")(_THREAD_LOCAL)
        self._call("StreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        """Ends the recording and returns an executable graph."""
        graph = self._call("StreamEndCapture", stream)
        try:
            made = self._call("GraphInstantiate", graph, 0)
        except BaseException:
            self._call("GraphDestroy", graph)
            raise
        # HIP's gives the place of an error too.
        executable = int(made[0] if isinstance(made, tuple) else made)
        try:
            self._call("GraphDestroy", graph)
        except BaseException:
            self.destroy_graph(executable)
            raise
        return executable

    def abandon_capture(self, stream: int) -> None:
        """Ends the recording; a capture that a call broke says so here, once more."""
        status, graph = self._function("StreamEndCapture")(stream)
        if status == 0:
            self._call("GraphDestroy", graph)
        self._forget_error()

    def launch_graph(self, graph: int, stream: int) -> None:
        """Launches an executable graph."""
        self._call("GraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Destroys an executable graph."""
        self._call("GraphExecDestroy", graph)

    def _function(self, name: str) -> Callable[..., tuple[Any, ...]]:
        function = self._calls.get(name)
        if function is None:
            function = self._calls[name] = getattr(self._bindings, self._prefix + name)
        return function

    def _call(self, name: str, *arguments: Any, about: str = "", unless: int | None = None) -> Any:
        """The one place where the runtime is called, and where each status is checked.

        Returns what the call gives: None, one value, or a tuple.

        Args:
            name: the call, without the prefix.
            arguments: its arguments.
            about: what a failure's message says of the arguments, for `str.format`.
            unless: a status that is no failure; `_UNLESS` is returned then.

        Raises:
            DeviceMemoryError: the status says that memory ran out.
            DeviceError: any other failure, or the library lacks the call.
        """
        try:
            status, *values = self._function(name)(*arguments)
        except RuntimeError as error:
            raise DeviceError(f"{self._prefix}{name}: {error}") from None
        if status != 0:
            self._forget_error()
            if status == unless:
                return _UNLESS
            raise self._failure(status, name, about.format(*arguments))
        if len(values) == 1:
            return values[0]
        return tuple(values) or None

    def _failure(self, status: Any, name: str, about: str) -> DeviceError:
        code, text = (self._describe(part, status) for part in ("GetErrorName", "GetErrorString"))
        message = f"{self._prefix}{name}: {code} ({int(status)})"
        if text != code:
            message += f": {text}"
        if about:
            message += f"; {about}"
        return (DeviceMemoryError if status == _OUT_OF_MEMORY else DeviceError)(message)

    def _describe(self, function: str, status: Any) -> str:
        text = self._function(function)(status)[1]
        if text is None:
            return "unknown error"
        return (bytes(text).rstrip(b"\0") if not isinstance(text, bytes) else text).decode(errors="replace")

    def _forget_error(self) -> None:
        """Clears the thread's last error, which ONNX Runtime, asking after its own launches, would take for its own."""
        self._function("GetLastError")()


class _Forked:
    """In place of a runtime's bindings in a forked process."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        raise DeviceError(
            f"{name}: {self._kind} was in use before this process was forked, and is of no use in it: start processes "
            "by 'spawn', or open devices in the child only"
        )
