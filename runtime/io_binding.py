"""Inputs and outputs of a session held on its device: a run copies nothing, and the host waits only where it reads.

    with session.bind({"x": array}, {"y": None}) as bound:
        bound.run()                                        # queued; nothing waits
        bound.inputs["x"].copy_from(bound.outputs["y"], stream=session.stream)
        bound.run()                                        # behind the copy, on the same stream
        y = bound.outputs["y"].numpy()                     # waits for these runs and the copy to the host

On the CPU the same calls work on the host's memory, and a run is done when it returns.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from rocline.errors import InputError, RoclineError
from rocline.runtime import capture as graphs
from rocline.runtime import forks
from rocline.runtime.bindable import Bindable
from rocline.runtime.bound_tensors import (
    Lent,
    check_overlaps,
    wanted_outputs,
)
from rocline.runtime.devices import Buffer, Event
from rocline.runtime.ort_binding import OrtBinding
from rocline.runtime.ort_log import LOGGER, essence
from rocline.runtime.turns import alone


class Binding:
    """Inputs and outputs bound for any number of runs; `rocline.runtime.session.Session.bind` makes it.

    One buffer may be bound to an input and to an output, and in several bindings: what is queued on one stream is done
    in order, and where another stream used a buffer, the device waits for that. Work that neither a `Buffer` nor DLPack
    knows of is ordered by ``ready`` before a run and `Stream.record` after it.

    The binding keeps its buffers' memory, whoever closes what `inputs` and `outputs` give, which is closed with it. It
    is closed by `close`, at the end of a ``with`` block, or with its session.

    Attributes:
        captured: whether runs replay a captured graph.
        uncaptured: why they do not; empty if they do.
        closed: whether it is closed.
    """

    def __init__(
        self,
        owner: object,
        session: Bindable,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any] | Sequence[str] | None,
        ready: "Event | Iterable[Event] | None",
        capture: bool | None,
    ) -> None:
        # A session that nobody holds any more is closed, and not while one of its bindings is in use.
        self._owner: object = owner
        self._path, self._session, self._turn = session.path, session, session.turn
        self._device, self._stream = session.lane.device, session.lane.stream
        self._driver = self._device.driver
        self._inputs: dict[str, Buffer] = {}
        self._outputs: dict[str, Buffer] = {}
        self._lent: dict[Buffer, Buffer] = {}
        self._wanted = wanted_outputs(session.outputs, outputs)
        self._asked: tuple[str, ...] = ()
        self._passed: tuple[str, ...] = ()
        self._dynamic: tuple[str, ...] = ()
        self._computed = self._renewed = False
        self._arena = session.arena
        self._handovers = -1
        self._graph: graphs.Graph | None = None
        self.closed = self._forked = False
        self._ort = OrtBinding(session.ort, session.memory, self._device.device_id)
        self._run_ort, self._io, self._options = session.ort.run_with_iobinding, self._ort.io, session.run_options
        try:
            self._wait(ready)
            self._bind(inputs)
            self.uncaptured = self._obstacle(session.graph_capture if capture is None else capture)
            self._try_capture = not self.uncaptured
            self.captured = False
        except BaseException:
            self.close()
            raise

    @property
    def inputs(self) -> Mapping[str, Buffer]:
        """The bound inputs by name; what is written to one is what the next run reads.

        Those that the model reads on the host, whatever the device, are in the host's memory.
        """
        return Lent(self._inputs, self._input)

    @property
    def outputs(self) -> Mapping[str, Buffer]:
        """The bound outputs by name; those that ONNX Runtime allocates exist from the first run on, anew after each."""
        return Lent(self._wanted, self._output)

    def run(self, *, ready: "Event | Iterable[Event] | None" = None) -> None:
        """Queues one run on the session's stream and returns; on the CPU it is done by then.

        Args:
            ready: events that the device waits for before the run.

        Raises:
            RoclineError: the run failed, or the binding is closed. Outputs then hold nothing to rely on.
        """
        if ready is not None:
            self._wait(ready)
        if self._try_capture and self._capture():
            return
        with self._turn:
            self._prepare()
            if self._graph is None:
                self._queue()
            else:
                self._graph.launch(self._stream)

    def synchronize(self) -> None:
        """Waits until all that was queued on the session's stream is done.

        Raises:
            DeviceError: something that was queued failed.
            RoclineError: the binding is closed.
        """
        with ExitStack() as until_done:
            with self._turn:
                self._check_open()
                until_done.enter_context(self._session.lane.held())
            self._stream.synchronize()

    def set_inputs(self, inputs: Mapping[str, Any], *, ready: "Event | Iterable[Event] | None" = None) -> None:
        """Binds other tensors to some inputs from the next run on: outputs that ONNX Runtime allocated, for one.

        Outputs that were allocated because their shape followed from the inputs' are allocated anew where it changes.

        Args:
            inputs: by name, as `Session.bind` takes them.
            ready: events that the device waits for first.

        Raises:
            InputError: an input is unknown, or dtype or shape do not fit, those of outputs' buffers included; nothing
                changes then.
            RoclineError: the binding is closed, or captured: then only what its buffers hold can change.
        """
        with self._turn:
            self._check_open()
            if self.captured or self._try_capture:
                names = ", ".join(inputs)
                raise RoclineError(f"{self._path}: inputs {names}: the runs are captured, write to the buffers")
            self._wait(ready)
            self._bind(inputs)

    def leave_to_parent(self) -> None:
        """In a forked process: refuses every use from now on."""
        self._forked = True

    def close(self) -> None:
        """Lets go of the buffers, in the order of the stream: what is queued goes on. A second call does nothing."""
        with self._turn:
            if self.closed:
                return
            self.closed = True
            self._ort.close()
            # What is closed may be kept for long, and must not keep ONNX Runtime's session, which needs the stream.
            del self._owner, self._session, self._run_ort, self._io
            for buffer in (*self._inputs.values(), *self._outputs.values()):
                self._let_go(buffer)
            self._drop_graph()

    def __del__(self) -> None:
        # Buffers look after themselves.
        if not getattr(self, "closed", True):
            self._drop_graph()

    def __enter__(self) -> "Binding":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"binding of {self._path}"

    def _input(self, name: str) -> Buffer:
        """Returns one input's buffer; see `inputs`."""
        with self._turn:
            self._check_open()
            if name not in self._inputs:
                raise InputError(f"input '{name}': not bound, only {', '.join(self._inputs)}")
            return self._lend(self._inputs[name])

    def _output(self, name: str) -> Buffer:
        """Returns one output's buffer; see `outputs`."""
        with self._turn:
            self._check_open()
            if name not in self._wanted:
                raise InputError(f"output '{name}': not bound, only {', '.join(self._wanted)}")
            if name not in self._outputs:
                if not self._computed:
                    raise RoclineError(f"{self._path}: output '{name}': ONNX Runtime allocates it in run()")
                self._take_outputs()
            buffer = self._outputs[name]
            # ONNX Runtime keeps the memory of its own, until it is replaced.
            return buffer if name in self._dynamic else self._lend(buffer)

    def _lend(self, buffer: Buffer) -> Buffer:
        """Returns a view of a buffer that a run uses: whoever closes it leaves the buffer as it is."""
        lent = self._lent.get(buffer)
        if lent is None or lent.closed:
            lent = self._lent[buffer] = buffer.view(buffer.shape)
        return lent

    def _keep(self, bound: dict[str, Buffer], name: str, buffer: Buffer) -> None:
        """Puts a buffer, which ONNX Runtime has now, in the place of another."""
        replaced = bound.get(name)
        bound[name] = buffer
        if replaced is not None:
            self._let_go(replaced)

    def _let_go(self, buffer: Buffer) -> None:
        lent = self._lent.pop(buffer, None)
        if lent is not None:
            lent.close()
        buffer.close()

    def _take_outputs(self) -> None:
        values = self._ort.outputs(self._asked)
        for name in self._dynamic:
            self._outputs[name] = self._arena.wrap(values[name], self._session.outputs[name])

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self._arena.drop_graph(graph)

    def _check_open(self) -> None:
        if self._forked:
            raise RoclineError(f"{self._path}: {forks.REFUSAL}")
        if self.closed or self._stream.closed:
            raise RoclineError(f"{self}: closed" if self.closed else f"{self}: the stream is closed")

    def _wait(self, ready: "Event | Iterable[Event] | None") -> None:
        if ready is None:
            return
        events = tuple(ready) if isinstance(ready, Iterable) else (ready,)
        for event in events:
            if not isinstance(event, Event):
                raise InputError(f"ready: {event!r}, expected an Event, or several")
        for event in events:
            self._stream.wait(event)

    def _prepare(self) -> None:
        """Readies everything for one more run to be queued."""
        self._check_open()
        if self._handovers != self._driver.handovers:
            self._announce()
        if self._arena:
            self._arena.collect()
        if self._dynamic:
            # Who holds the last run's outputs keeps them.
            for name in self._dynamic:
                self._outputs.pop(name, None)
            if not self._renewed:
                self._ort.bind_new(self._dynamic)

    def _announce(self) -> None:
        """Lets the stream wait for what others did with the buffers, and notes what it is about to do with them."""
        with self._driver.lock:
            for buffer in self._inputs.values():
                if buffer.device.same_as(self._device):
                    buffer.use(self._stream)
            for name, buffer in self._outputs.items():
                if name not in self._dynamic:
                    buffer.use(self._stream, write=True)
            self._handovers = self._driver.handovers

    def _queue(self) -> None:
        self._renewed = False
        for name in self._passed:
            if self._outputs[name].pointer != self._inputs[name].pointer:
                self._outputs[name].copy_from(self._inputs[name], stream=self._stream)
        aside = self._session.copies_aside
        if aside:
            self._stream.synchronize()
        try:
            if self._asked:
                self._run_ort(self._io, self._options)
        except Exception as error:
            self._computed = False
            raise RoclineError(f"{self._path}: run failed: {essence(error)}") from error
        if aside:
            self._driver.synchronize_device(self._device.device_id)
        self._computed = True
        if self._dynamic and self._session.uncapturable is None:
            self._copy_outputs()

    def _copy_outputs(self) -> None:
        """Moves what ONNX Runtime allocated to memory of the pool's.

        A captured graph writes to memory that its run only borrowed from ONNX Runtime's arena, whoever has it now.
        """
        self._take_outputs()
        for name in self._dynamic:
            with self._outputs[name] as lent:
                own = self._device.allocate(lent.shape, lent.dtype, stream=self._stream)
                own.copy_from(lent, stream=self._stream)
                self._outputs[name] = own

    def _capture(self) -> bool:
        """The first run, alone on the device, captured if that can be; False if another thread was first.

        Also where one waits for the stream, which a capture would break: the next run tries again.
        """
        with alone(self._driver):
            self._prepare()
            if not self._try_capture or self._stream.awaited:
                return False
            self._try_capture, self.uncaptured = False, "the first run failed"
            inputs, outputs = list(self._inputs.values()), list(self._outputs.values())
            try:
                self._graph = graphs.capture(self._queue, self._stream, inputs, outputs)
            except graphs.Uncapturable as error:
                self._refuse_capture(str(error))
            else:
                self.captured, self.uncaptured = True, ""
            return True

    def _obstacle(self, capture: bool) -> str:
        """Returns why runs of this binding cannot be captured, or nothing."""
        if not capture:
            return "not asked for"
        reason = self._session.uncapturable
        if reason is None:
            on_host = [name for name in self._inputs if name in self._session.on_host]
            if on_host:
                reason = f"the model reads {', '.join(on_host)} on the host"
            elif self._dynamic:
                reason = f"ONNX Runtime allocates {', '.join(self._dynamic)} at each run; give the shape"
        if reason is not None:
            self._refuse_capture(reason)
        return reason or ""

    def _refuse_capture(self, reason: str) -> None:
        self.uncaptured = reason
        LOGGER.warning("%s: runs are not captured as a graph: %s", self._path, reason)

    def _bind(self, given: Mapping[str, Any]) -> None:
        """Binds inputs, and the outputs that are not bound yet or of another shape than the inputs' ask for now.

        What does not fit is refused before anything changes.
        """
        made: list[Buffer] = []
        try:
            inputs = self._session.bound_inputs(given, self._inputs, made)
            kept = {name: buffer for name, buffer in self._outputs.items() if name not in self._dynamic}
            outputs = self._session.bound_outputs(self._wanted, inputs, kept, made)
            passed = tuple(name for name in self._wanted if name in inputs)
            check_overlaps(inputs, outputs, passed)
        except BaseException:
            for buffer in made:
                buffer.close()
            raise
        for name, buffer in inputs.items():
            if self._inputs.get(name) is not buffer:
                self._ort.bind_input(name, buffer)
                self._keep(self._inputs, name, buffer)
        for name in self._dynamic:
            # Who holds the last run's outputs keeps them.
            self._outputs.pop(name, None)
        # In this order, by which ONNX Runtime tells them apart.
        for name in self._wanted:
            if name not in outputs:
                self._ort.bind_new([name])
            elif self._outputs.get(name) is not outputs[name]:
                if name not in passed:
                    self._ort.bind_output(name, outputs[name])
                self._keep(self._outputs, name, outputs[name])
        # An output that is an input itself ONNX Runtime never writes to the memory bound for it: it is copied here.
        self._passed, self._asked = passed, tuple(name for name in self._wanted if name not in passed)
        self._dynamic = tuple(name for name in self._wanted if name not in outputs)
        self._renewed, self._computed = True, False
        self._handovers = -1
