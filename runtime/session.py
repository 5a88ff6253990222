"""A model loaded into ONNX Runtime: on ROCm where that can run, else on the CPU, and always said which and why."""

import contextlib
import re
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from rocline.errors import InputError, RoclineError
from rocline.runtime import forks, onnx_file, ort_session, probe
from rocline.runtime import options as session_options
from rocline.runtime.bindable import Bindable
from rocline.runtime.bound_tensors import in_buffers
from rocline.runtime.inputs import InputCheck, with_objects
from rocline.runtime.io_binding import Binding
from rocline.runtime.manifest import Manifest, TensorSpec
from rocline.runtime.model import locate
from rocline.runtime.ort_log import LOGGER, essence
from rocline.runtime.ort_session import Plan, run_options
from rocline.runtime.providers import CPU, resolve
from rocline.runtime.report import Report
from rocline.runtime.startup import Lane, start
from rocline.runtime.turns import new_turn

if TYPE_CHECKING:
    import onnxruntime

    from rocline.runtime.devices import Device, Event, Stream

Array = np.ndarray[Any, Any]

_TENSOR = re.compile(r"tensor\((\w+)\)")
_ORT_DTYPES = {"float": "float32", "double": "float64"}
_WIDENED = "widened in memory from bfloat16 to float32: the CPU lacks bfloat16 operators"


class Session:
    """Runs one ONNX model.

    Args:
        path: a model folder or an .onnx file (see `rocline.runtime.model.locate`).
        providers: execution providers in order of preference, by short (``rocm``) or ONNX Runtime's name; None: ROCm
            first and CPU second (see `rocline.runtime.providers.resolve`). What none of them runs, the CPU runs.
        strict: make it an error if a provider asked for cannot be used. Single nodes that a GPU provider leaves to the
            CPU are no error: see ``report.placement``.
        device_id: which GPU, from 0.
        options: typed options by name: those of `rocline.runtime.options.SESSION_OPTIONS` and of the providers.
        verify: compare the SHA-256 of the folder's files with the manifest first.
        stream: a stream to queue on instead of one of the session's own: another session, for that one's, or a `Stream`
            of the same device, which stays the caller's to close.

    On a GPU whose provider takes a stream (ROCm, CUDA) all that the session does is queued on one stream. Several
    threads may call one session; their runs take turns.

    A provider that cannot be used is left out; one warning on the logger ``rocline`` says what was asked, what runs,
    why, and how to mend it, and ``report`` holds the same. A bfloat16 model that runs on the CPU alone, which lacks
    most bfloat16 operators, is widened in memory to float32, and ``report.notes`` says so.

    Attributes:
        inputs: the model's inputs.
        outputs: the model's outputs.
        report: where the session runs and why.
        manifest: what the model folder says of itself, or None.
        folder: the folder that holds the model.

    Raises:
        ModelError: the model is missing, damaged, or not one that this onnxruntime loads.
        ProviderError: onnxruntime is missing, a provider is unknown, or ``strict`` refused a fallback.
        InputError: an option is unknown or has a wrong value, or ``stream`` is none of the device's.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    report: Report
    manifest: Manifest | None
    folder: Path

    def __init__(
        self,
        path: str | Path,
        providers: Sequence[str] | None = None,
        *,
        strict: bool = False,
        device_id: int = 0,
        options: Mapping[str, Any] | None = None,
        verify: bool = False,
        stream: "Session | Stream | None" = None,
    ) -> None:
        libraries = probe.installation().libraries
        import onnxruntime

        built_in = frozenset(onnxruntime.get_available_providers())
        requested = resolve(providers, built_in)
        checked = session_options.check(options, requested, device_id)
        files = locate(path, verify=verify)
        outline = onnx_file.read(files.onnx)
        onnx_file.check_external(files.onnx, outline)
        self.folder, self.manifest, self._path = files.folder, files.manifest, files.onnx

        probes = [probe.probe(row, built_in, libraries, device_id=device_id) for row in requested]
        shared = stream.stream if isinstance(stream, Session) else stream
        plan = Plan(files.onnx, outline, checked, widen=False)
        self._turn = new_turn()
        with self._turn:
            started = start(plan, probes, device_id, shared, strict=strict)
        session: onnxruntime.InferenceSession = started.ort
        self._ort: onnxruntime.InferenceSession | None = session
        self._lane: Lane | None = started.lane
        self._host: Lane | None = None
        self._memory = next((row for row in started.providers if row.takes_user_stream), CPU).device
        self._bindings: weakref.WeakSet[Binding] = weakref.WeakSet()
        self._on_gpu, self._forked = started.providers != [CPU], False
        forks.watch(self)
        notes = [_WIDENED] if started.plan.widen else []
        # A session that can be captured frees that memory from the host.
        staging = started.lane is not None and started.capture is not None
        self._staging = sorted(ort_session.STAGING & outline.operators.keys()) if staging else []
        if self._staging:
            notes.append(
                f"every run waits for the device, as ONNX Runtime needs it to after {', '.join(self._staging)}"
            )
        constants = started.plan.outline.constants if started.lane is not None else ()
        if constants:
            started.capture = f"ONNX Runtime copies {', '.join(constants)} outside of the stream"
            notes.append(
                f"every run waits for the device, since ONNX Runtime copies {', '.join(constants)}, "
                "which no input reaches, outside of the stream"
            )
        self._aside = bool(constants)
        self._capture, self._uncapturable = checked.session.get("graph_capture", False), started.capture
        if self._capture and started.capture:
            notes.append(f"graphs are not captured: {started.capture}")
        self.report = Report(
            requested=tuple(row.ort_name for row in requested),
            active=tuple(session.get_providers()),
            fallbacks=tuple(started.fallbacks),
            notes=tuple(notes),
            _place=partial(started.plan.placement, started.providers),
        )
        warning = self.report.warning()
        if warning:
            LOGGER.warning("%s", warning)

        any_rank = {spec.name for spec in (*outline.inputs, *outline.outputs) if spec.shape == onnx_file.ANY_RANK}
        self.inputs = tuple(_spec(node, any_rank) for node in session.get_inputs())
        self.outputs = tuple(_spec(node, any_rank) for node in session.get_outputs())
        self._check = InputCheck(self.inputs, [_spec(node) for node in session.get_overridable_initializers()])
        self._output_names = [spec.name for spec in self.outputs]
        self._in_buffers = started.lane is not None and in_buffers((*self.inputs, *self.outputs))
        self._strings = any(spec.dtype == "string" for spec in self.inputs)
        self._bfloat16 = any(spec.dtype == "bfloat16" for spec in (*self.inputs, *self.outputs))

    @property
    def ort(self) -> "onnxruntime.InferenceSession":
        """The onnxruntime.InferenceSession underneath.

        Raises:
            RoclineError: this session is closed.
        """
        return self._opened()

    @contextlib.contextmanager
    def held(self) -> Iterator["onnxruntime.InferenceSession"]:
        """Gives ONNX Runtime's session to a block during which other threads' runs, captures and closing wait.

        Raises:
            RoclineError: this session is closed.
        """
        with self._turn:
            yield self._opened()

    @property
    def device(self) -> "Device":
        """Where `bind` keeps tensors: the GPU, or the host where ONNX Runtime copies by itself.

        What is allocated on it lives until the session is closed, or the last of those that share its stream.

        Raises:
            RoclineError: this session is closed.
        """
        with self._turn:
            return self._open_lane().device

    @property
    def stream(self) -> "Stream":
        """Where all that this session does is queued; on the host one where all is done at once.

        Raises:
            RoclineError: this session is closed.
        """
        with self._turn:
            return self._open_lane().stream

    def bind(
        self,
        inputs: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | Sequence[str] | None = None,
        *,
        ready: "Event | Iterable[Event] | None" = None,
        capture: bool | None = None,
    ) -> Binding:
        """Holds inputs and outputs on the device, so that a run copies nothing; see `rocline.runtime.io_binding`.

        Args:
            inputs: by name: a NumPy array, which is copied; a `Buffer`, or anything with ``__dlpack__``, whose memory
                is used as it is; or a shape to allocate, which `Binding.inputs` is then written to. An input that is
                left out is allocated if the model fixes its shape.
            outputs: by name: a `Buffer`, or anything with ``__dlpack__``, to write to; a shape to allocate; or None:
                ONNX Runtime allocates at each run. Or only names, or None for all outputs: then each is allocated once
                if its shape follows from the inputs', else at each run.
            ready: events to wait for, on the device, before anything of the inputs is read.
            capture: replay a captured graph from the first run on; None: as the option ``graph_capture`` says.

        Raises:
            InputError: a name is unknown, an input is missing, or a dtype or shape does not fit.
            DeviceError: a buffer is closed or elsewhere, or the device is out of memory.
            RoclineError: this session is closed.
        """
        with self.held():
            binding = Binding(self, self._bindable, {} if inputs is None else inputs, outputs, ready, capture)
            self._bindings.add(binding)
            return binding

    @cached_property
    def _bindable(self) -> Bindable:
        """What bindings need of this session; made for the first."""
        session, lane = self.ort, self._open_lane()
        if self._lane is None:
            host, options = lane, None
        else:
            host = self._host = Lane.open("cpu", 0)
            options = run_options(wait=bool(self._staging))
        optional = (_spec(node) for node in session.get_overridable_initializers())
        return Bindable(
            path=self._path,
            ort=session,
            memory=self._memory,
            inputs={spec.name: spec for spec in (*self.inputs, *optional)},
            outputs={spec.name: spec for spec in self.outputs},
            check=self._check,
            lane=lane,
            host=host,
            turn=self._turn,
            run_options=options,
            graph_capture=self._capture,
            uncapturable=self._uncapturable,
            copies_aside=self._aside,
        )

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the model once.

        Args:
            inputs: one NumPy array for each input, of exactly its dtype: nothing is cast. Strings are arrays of
                ``object`` or ``str``; bfloat16 ones have ml_dtypes' dtype.
            outputs: names of the outputs wanted; None for all.

        Returns:
            One array for each output wanted, by name.

        Raises:
            InputError: an input is missing, unknown, or has the wrong dtype, rank or dimensions; an output is unknown.
            RoclineError: the run failed, or the session is closed.
        """
        session = self._opened()
        self._check(inputs)
        names = self._output_names if outputs is None else self._wanted(outputs)
        if self._in_buffers:
            return self._run_bound(inputs, names)
        if self._strings:
            inputs = with_objects(inputs)
        try:
            if self._lane is not None:
                # What no buffer holds, as strings; ONNX Runtime waits at the end of such a run.
                with self.held():
                    values = session.run(names, inputs, run_options(wait=True))
            elif self._bfloat16:
                from rocline.runtime import bfloat16

                values = bfloat16.run(session, names, inputs)
            else:
                values = session.run(names, inputs)
        except Exception as error:
            # Another thread may have closed the session just before ONNX Runtime was called.
            self._opened()
            raise RoclineError(f"{self._path}: run failed: {essence(error)}") from error
        return dict(zip(names, values, strict=True))

    def _run_bound(self, inputs: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        """Runs on the session's stream; the only wait is for the outputs, and it holds nobody up."""
        with contextlib.ExitStack() as until_read:
            with self._turn:
                until_read.enter_context(self._open_lane().held())
                bound = until_read.enter_context(self.bind(inputs, dict.fromkeys(names), capture=False))
                bound.run()
                fetched = [until_read.enter_context(bound.outputs[name].fetch()) for name in names]
            return {name: copy.view().copy() for name, copy in zip(names, fetched, strict=True)}

    def close(self) -> None:
        """Waits for what is queued, closes every binding, and frees the model; a second call does nothing.

        Other threads' runs that began are waited for, later ones are refused. The session's own stream, and every
        buffer on `device`, is closed with the last session that uses it.

        Raises:
            DeviceError: work that was still queued failed.
        """
        if getattr(self, "_ort", None) is None:
            return
        with self._turn, contextlib.ExitStack() as last_first:
            session, self._ort = self._ort, None
            if session is None:
                return
            for lane in (self._lane, self._host):
                if lane is not None:
                    last_first.callback(lane.leave)
            last_first.callback(self._free, session)
            for binding in list(self._bindings):
                last_first.callback(binding.close)
            if self._lane is not None and not self._lane.stream.closed:
                self._lane.stream.synchronize()

    def leave_to_parent(self) -> None:
        """In a forked process: never frees ONNX Runtime's session, and on a GPU refuses every use from now on."""
        if self._ort is not None:
            forks.keep(self._ort._sess)
        if self._on_gpu:
            self._ort, self._forked = None, True
            for binding in list(self._bindings):
                binding.leave_to_parent()

    def _free(self, session: "onnxruntime.InferenceSession") -> None:
        """Drops ONNX Runtime's session, which uses the stream until it is gone: no closed binding may keep it."""
        ort_session.free(session)
        bindable = self.__dict__.pop("_bindable", None)
        if bindable is not None:
            bindable.arena.close()

    def __del__(self) -> None:
        # In this order also where nobody called close: what is queued, ONNX Runtime, the stream.
        with contextlib.suppress(Exception):
            self.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_lane(self) -> Lane:
        self._opened()
        lane = self._lane or self._host
        if lane is None:
            lane = self._host = Lane.open("cpu", 0)
        return lane

    def _opened(self) -> "onnxruntime.InferenceSession":
        session = self._ort
        if self._forked:
            raise RoclineError(f"{self._path}: {forks.REFUSAL}")
        if session is None:
            raise RoclineError(f"{self._path}: the session is closed")
        return session

    def _wanted(self, outputs: Sequence[str]) -> list[str]:
        known = ", ".join(self._output_names)
        if isinstance(outputs, str) or not outputs:
            raise InputError(f"outputs: {outputs!r}, expected a list of names out of {known}")
        for name in outputs:
            if name not in self._output_names:
                raise InputError(f"output '{name}': unknown, the model gives {known}")
        return list(outputs)


def _spec(node: Any, any_rank: Collection[str] = ()) -> TensorSpec:
    """Turns ONNX Runtime's description of an input or output into ours."""
    match = _TENSOR.fullmatch(node.type)
    dtype = _ORT_DTYPES.get(match[1], match[1]) if match else node.type
    # There too an unknown rank looks like a scalar's.
    if node.name in any_rank and not node.shape:
        return TensorSpec(node.name, dtype, onnx_file.ANY_RANK)
    # An open dimension is None or negative there.
    shape = (size if isinstance(size, str) or (size is not None and size >= 0) else "" for size in node.shape or ())
    return TensorSpec(node.name, dtype, tuple(size if size != "" else onnx_file.UNKNOWN for size in shape))
