"""One run captured as a graph, to be launched with one call: compared with eager runs before it is trusted."""

from collections.abc import Callable, Sequence

import numpy as np

from rocline.errors import RoclineError
from rocline.runtime.devices import Buffer, Stream
from rocline.runtime.devices.driver import Driver

# Eager runs before the capture: the first two are when ONNX Runtime's arena still asks the device for memory.
_WARM_UP = 2
_POISON = 0xA5


class Uncapturable(RoclineError):
    """A run cannot be captured, or its graph does not do what the run did."""


class Graph:
    """A captured run; launching it queues the same work on the same buffers.

    Args:
        driver: the runtime.
        handle: the runtime's instantiated graph.
    """

    def __init__(self, driver: Driver, handle: int) -> None:
        self._driver, self._handle = driver, handle

    def launch(self, stream: Stream) -> None:
        """Queues the run.

        Raises:
            DeviceError: the runtime refused.
        """
        self._driver.launch_graph(self._handle, stream.handle)

    def close(self) -> None:
        """Frees the graph; no launch of it may be under way. A second call does nothing."""
        handle, self._handle = self._handle, 0
        if handle:
            self._driver.destroy_graph(handle)


def capture(queue: Callable[[], None], stream: Stream, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> Graph:
    """Runs once, and returns a graph that was seen to do the same bit by bit.

    Whatever happens, the buffers are afterwards as one run leaves them. No other thread may use the device meanwhile
    (see `rocline.runtime.turns.alone`).

    Args:
        queue: queues one run on ``stream``.
        stream: the stream.
        inputs: what the run reads.
        outputs: what it writes; some may be inputs too.

    Raises:
        Uncapturable: there is no such graph; the run itself is queued.
        RoclineError: the run failed.
    """
    pointers = {buffer.pointer for buffer in inputs}
    updated = [buffer for buffer in outputs if buffer.pointer in pointers]
    written = [buffer for buffer in outputs if buffer.pointer not in pointers]
    copies: list[Buffer] = []

    def copied(buffers: Sequence[Buffer]) -> list[Buffer]:
        made = []
        for buffer in buffers:
            made.append(buffer.device.allocate(buffer.shape, buffer.dtype, stream=stream))
            copies.append(made[-1])
            made[-1].copy_from(buffer, stream=stream)
        return made

    def prepare() -> None:
        for buffer, copy in zip(updated, before, strict=True):
            buffer.copy_from(copy, stream=stream)
        # What a run does not write must not look like a difference.
        for buffer in written:
            buffer.fill(_POISON, stream=stream)

    try:
        before = copied(updated)
        for _ in range(_WARM_UP):
            prepare()
            queue()
        eager = copied(outputs)
        prepare()
        # What goes wrong here is not the model's fault, so long as the eager runs went well.
        stream.synchronize()
        try:
            graph = Graph(stream.device.driver, _captured(queue, stream))
            try:
                graph.launch(stream)
                _compare(outputs, eager, stream)
            except BaseException:
                graph.close()
                raise
        except RoclineError as error:
            for buffer, copy in zip(outputs, eager, strict=True):
                buffer.copy_from(copy, stream=stream)
            raise Uncapturable(str(error)) from error
        return graph
    finally:
        for copy in copies:
            copy.close()


def _captured(queue: Callable[[], None], stream: Stream) -> int:
    driver = stream.device.driver
    try:
        driver.begin_capture(stream.handle)
        queue()
        return driver.end_capture(stream.handle)
    except BaseException:
        # Ctrl-C may come as soon as it has begun. If it was ended, or never begun, this says so: of no interest.
        driver.abandon_capture(stream.handle)
        raise


def _compare(outputs: Sequence[Buffer], eager: Sequence[Buffer], stream: Stream) -> None:
    for buffer, copy in zip(outputs, eager, strict=True):
        got, wanted = (item.numpy(stream=stream).reshape(-1).view(np.uint8) for item in (buffer, copy))
        different = int(np.count_nonzero(got != wanted))
        if different:
            raise Uncapturable(f"{different:,} of {got.size:,} bytes of {buffer} differ from the eager run's")
