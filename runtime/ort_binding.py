"""ONNX Runtime's IO binding on buffers: by raw pointer, which is the one way that every GPU build of it takes."""

import math
import sys
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from rocline.errors import RoclineError
from rocline.runtime.bound_tensors import buffer_dtype
from rocline.runtime.capture import Graph
from rocline.runtime.devices import Buffer, Event, Stream
from rocline.runtime.devices.storage import Storage
from rocline.runtime.manifest import TensorSpec
from rocline.runtime.ort_log import essence

if TYPE_CHECKING:
    import onnxruntime

# ONNX's number for it: NumPy has no type by which to name it.
_BFLOAT16 = 16
# Stands for the address of a tensor without elements, which may have none; ONNX Runtime wants one.
_NOWHERE = 64


class Arena:
    """What a session's runs left behind, given back only in the order of its stream: outputs' memory, and graphs.

    ONNX Runtime's arena hands memory that is free to the next run, and knows of no stream but the session's. A buffer
    on such memory, and a captured graph, may be dropped at any time by any thread: what other streams still do with the
    memory is waited for, on the device, before a run; and a graph is freed when its launches are done.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._lent: weakref.WeakSet[Buffer] = weakref.WeakSet()
        self._dropped: deque[tuple[Any, set[Stream], bool]] = deque()
        self._graphs: deque[tuple[Graph, Event | None]] = deque()
        self._closed = False

    def wrap(self, share: Any, spec: TensorSpec) -> Buffer:
        """Returns a buffer on the memory of one of `OrtBinding.outputs`, which it keeps."""
        value = share[0]
        shape, dtype = tuple(value.shape()), buffer_dtype(spec)
        nbytes = math.prod(shape) * dtype.itemsize
        kept = [share]

        def release(storage: Storage) -> None:
            if not self._closed:
                self._dropped.append((kept[0], storage.streams - {self._stream}, storage.strangers))
            kept.clear()

        device = self._stream.device
        buffer = Buffer(Storage(device, value.data_ptr(), nbytes, self._stream, release), shape, dtype, self._stream)
        self._lent.add(buffer)
        return buffer

    def drop_graph(self, graph: Graph) -> None:
        """Takes a graph of which launches may still be queued."""
        self._graphs.append((graph, None))

    def collect(self) -> None:
        """Gives back what was dropped; never waits on the host for a stream that is known."""
        for _ in range(len(self._graphs)):
            graph, event = self._graphs[0]
            # Only then taken out: a call that fails must not lose it.
            if event is None or not event.done:
                self._graphs.append((graph, event or self._stream.record()))
                self._graphs.popleft()
            else:
                self._graphs.popleft()
                with ExitStack() as both:
                    both.callback(event.close)
                    both.callback(graph.close)
        while self._dropped:
            share, streams, strangers = self._dropped.popleft()
            if strangers:
                self._stream.device.driver.synchronize_device(self._stream.device.device_id)
            for stream in streams:
                self._stream.wait(stream)
            del share

    def close(self) -> None:
        """Closes the buffers, and lets go of all but what a DLPack consumer still holds; the stream must be done."""
        with ExitStack() as everything:
            while self._graphs:
                graph, event = self._graphs.popleft()
                everything.callback(graph.close)
                if event is not None:
                    everything.callback(event.close)
            everything.callback(self._dropped.clear)
            everything.callback(setattr, self, "_closed", True)
            if not self._stream.closed:
                everything.callback(self.collect)
            for buffer in list(self._lent):
                everything.callback(buffer.close)

    def __bool__(self) -> bool:
        return bool(self._dropped or self._graphs)


class OrtBinding:
    """One onnxruntime.IOBinding.

    Args:
        session: the onnxruntime.InferenceSession.
        memory: ONNX Runtime's name of the device's memory.
        device_id: which device.

    Attributes:
        io: the onnxruntime.IOBinding, for ``run_with_iobinding``.
    """

    def __init__(self, session: "onnxruntime.InferenceSession", memory: str, device_id: int) -> None:
        with _errors_named():
            self.io: Any = session.io_binding()
        self._memory, self._device_id = memory, device_id

    def bind_input(self, name: str, buffer: Buffer) -> None:
        """Lets ONNX Runtime read an input from ``buffer``."""
        with _errors_named():
            self.io.bind_input(name, *self._place(buffer))

    def bind_output(self, name: str, buffer: Buffer) -> None:
        """Lets ONNX Runtime write an output to ``buffer``."""
        with _errors_named():
            self.io.bind_output(name, *self._place(buffer))

    def bind_new(self, names: Iterable[str]) -> None:
        """Lets ONNX Runtime allocate these outputs in the next run; afterwards they keep that memory and its shape."""
        with _errors_named():
            for name in names:
                self.io.bind_output(name, self._memory, self._device_id)

    def outputs(self, names: Iterable[str]) -> dict[str, Any]:
        """Returns each output after a run, as ONNX Runtime's values; ``names`` are all that were bound, in order.

        Each is an OrtValueVector of one: a share of its own, where ``get_outputs`` lends what the next run replaces.
        """
        from onnxruntime.capi.onnxruntime_pybind11_state import OrtValueVector

        shares = {}
        for name, value in zip(names, self.io.get_outputs_as_ortvaluevector(), strict=True):
            shares[name] = OrtValueVector()
            shares[name].push_back(value)
        return shares

    def close(self) -> None:
        """Lets go of every buffer."""
        self.io.clear_binding_inputs()
        self.io.clear_binding_outputs()
        # As with the session: a traceback may have the Python object.
        self.io._iobinding = self.io = None

    def _place(self, buffer: Buffer) -> tuple[str, int, Any, tuple[int, ...], int]:
        host = buffer.device.driver.host_memory
        element: Any = _BFLOAT16 if buffer.dtype.name == "bfloat16" else buffer.dtype.type
        pointer = buffer.pointer or _NOWHERE
        return "cpu" if host else self._memory, 0 if host else self._device_id, element, buffer.shape, pointer


@contextmanager
def _errors_named() -> Iterator[None]:
    """Turns what ONNX Runtime raises, when the device refuses, into an error of one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise RoclineError(f"onnxruntime cannot bind: {essence(error)}") from error


def read_on_host(session: "onnxruntime.InferenceSession", names: Iterable[str]) -> frozenset[str]:
    """Returns the inputs that a session on a GPU reads on the host, whose memory has to be bound then.

    ONNX Runtime 1.22 does not tell. But what it binds in the wrong place it copies, at once and never again; what is in
    the right place it keeps, and that shows in the number of references to an array that holds no elements.
    """
    from onnxruntime.capi.onnxruntime_pybind11_state import OrtValue

    kept = set()
    with _errors_named():
        binding = session.io_binding()._iobinding
        for name in names:
            array = np.empty(0, np.uint8)
            before = sys.getrefcount(array)
            value = OrtValue.from_dlpack(array.__dlpack__(), False)
            binding.bind_ortvalue_input(name, value)
            del value
            if sys.getrefcount(array) > before:
                kept.add(name)
    return frozenset(kept)
