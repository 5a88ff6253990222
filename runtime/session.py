"""A model loaded into ONNX Runtime: on ROCm where that can run, else on the CPU, and always said which and why."""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from rocline.errors import InputError, ProviderError, RoclineError
from rocline.runtime import onnx_file, probe
from rocline.runtime import options as session_options
from rocline.runtime.inputs import InputCheck
from rocline.runtime.manifest import Manifest, TensorSpec
from rocline.runtime.model import locate
from rocline.runtime.ort_log import LOGGER, essence
from rocline.runtime.ort_session import Plan
from rocline.runtime.providers import CPU, Provider, resolve
from rocline.runtime.report import Fallback, Report

if TYPE_CHECKING:
    import onnxruntime

Array = np.ndarray[Any, Any]

_TENSOR = re.compile(r"tensor\((\w+)\)")
_ORT_DTYPES = {"float": "float32", "double": "float64"}


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
        InputError: an option is unknown or has a wrong value.
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
        fallbacks = [Fallback(p.provider.ort_name, p.reason, p.fix) for p in probes if p.reason is not None]
        usable = [p.provider for p in probes if p.reason is None]
        if CPU not in usable:
            usable.append(CPU)
        if strict:
            _refuse(fallbacks)
        plan = Plan(files.onnx, outline, checked, widen=outline.bfloat16 and usable == [CPU])
        session, log = plan.create(usable)
        active = tuple(session.get_providers())
        dropped = [row for row in usable if row.ort_name not in active]
        if dropped:
            fallbacks += _dropped(dropped, log.errors)
            if strict:
                _refuse(fallbacks)
            usable = [row for row in usable if row not in dropped]
            if outline.bfloat16 and usable == [CPU]:
                plan = plan.widened()
                session, _ = plan.create(usable)

        self._ort: onnxruntime.InferenceSession | None = session
        note = "widened in memory from bfloat16 to float32: the CPU lacks bfloat16 operators"
        self.report = Report(
            requested=tuple(row.ort_name for row in requested),
            active=active,
            fallbacks=tuple(fallbacks),
            notes=(note,) if plan.widen else (),
            _place=partial(plan.placement, usable),
        )
        warning = self.report.warning()
        if warning:
            LOGGER.warning("%s", warning)

        any_rank = {spec.name for spec in outline.inputs if spec.shape == onnx_file.ANY_RANK}
        self.inputs = tuple(_spec(node, any_rank) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        self._check = InputCheck(self.inputs, [_spec(node) for node in session.get_overridable_initializers()])
        self._output_names = [spec.name for spec in self.outputs]
        self._bfloat16 = any(spec.dtype == "bfloat16" for spec in (*self.inputs, *self.outputs))

    @property
    def ort(self) -> "onnxruntime.InferenceSession":
        """The onnxruntime.InferenceSession underneath.

        Raises:
            RoclineError: this session is closed.
        """
        if self._ort is None:
            raise RoclineError(f"{self._path}: the session is closed")
        return self._ort

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
        session = self._ort or self.ort
        self._check(inputs)
        names = self._output_names if outputs is None else self._wanted(outputs)
        try:
            if self._bfloat16:
                from rocline.runtime import bfloat16

                values = bfloat16.run(session, names, inputs)
            else:
                values = session.run(names, inputs)
        except Exception as error:
            raise RoclineError(f"{self._path}: run failed: {essence(error)}") from error
        return dict(zip(names, values, strict=True))

    def close(self) -> None:
        """Frees the model; a second call does nothing."""
        self._ort = None

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wanted(self, outputs: Sequence[str]) -> list[str]:
        known = ", ".join(self._output_names)
        if isinstance(outputs, str) or not outputs:
            raise InputError(f"outputs: {outputs!r}, expected a list of names out of {known}")
        for name in outputs:
            if name not in self._output_names:
                raise InputError(f"output '{name}': unknown, the model gives {known}")
        return list(outputs)


def _refuse(fallbacks: Sequence[Fallback]) -> None:
    if fallbacks:
        first = fallbacks[0]
        raise ProviderError(f"strict: {first.provider} cannot run here: {first.why}")


def _dropped(providers: Sequence[Provider], errors: Sequence[str]) -> list[Fallback]:
    """Says for each provider that ONNX Runtime dropped what ONNX Runtime logged about it."""
    reason = errors[0] if errors else "ONNX Runtime dropped it without a word"
    return [Fallback(row.ort_name, reason, f"check the installation of {row.stack}") for row in providers]


def _spec(node: Any, any_rank: Collection[str] = ()) -> TensorSpec:
    """Turns ONNX Runtime's description of an input or output into ours."""
    match = _TENSOR.fullmatch(node.type)
    dtype = _ORT_DTYPES.get(match[1], match[1]) if match else node.type
    if node.name in any_rank:
        return TensorSpec(node.name, dtype, onnx_file.ANY_RANK)
    # An open dimension is None or negative there.
    shape = (size if isinstance(size, str) or (size is not None and size >= 0) else "" for size in node.shape or ())
    return TensorSpec(node.name, dtype, tuple(size if size != "" else onnx_file.UNKNOWN for size in shape))
