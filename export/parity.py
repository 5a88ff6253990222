"""Holds exported ONNX files to PyTorch's numbers, and says where they part."""

import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rocline import custom_ops
from rocline.errors import ExportError, ParityError
from rocline.export.reference import Case
from rocline.export.targets import Target
from rocline.runtime import onnx_file
from rocline.runtime.manifest import Parity

# The largest difference to PyTorch in fp32 that an export accepts by default, by the dtype of the exported model:
# absolute for outputs up to 1, relative to the output's largest value beyond, as rounding is. Seen on SmolLM2, whose
# logits reach 33: 3.2e-6 in fp32, 2.1e-3 in fp16, 1.0e-2 in bf16; at worst on the tiny random models: 1.2e-6, 2.8e-3,
# 1.8e-2. A graph that is wrong differs by the size of its outputs.
BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}


@dataclass(frozen=True)
class Difference:
    """How one output of one run differs from PyTorch's.

    Attributes:
        case: the run.
        output: the output's name.
        max_abs: largest absolute difference over the compared positions; infinite where one side alone is not finite.
        total: sum of the absolute differences.
        count: how many elements were compared.
        place: index of the worst element.
        got: the ONNX model's value there.
        wanted: PyTorch's.
        peak: the largest absolute value in PyTorch's output, over the compared positions.
    """

    case: Case
    output: str
    max_abs: float
    total: float
    count: int
    place: tuple[int, ...]
    got: float
    wanted: float
    peak: float

    @property
    def relative(self) -> float:
        """``max_abs``, over ``peak`` where that is above 1."""
        return self.max_abs / max(1.0, self.peak)


def measure(
    onnx_files: Mapping[str, Path],
    cases: Iterable[Case],
    *,
    bound: float,
    against: str,
    inputs: str,
    target: Target,
    torch_model: Any = None,
) -> tuple[Parity, ...]:
    """Runs every case through ONNX Runtime on the CPU and compares all outputs with PyTorch's.

    Padded positions are not compared (`rocline.export.reference.Case` says why). A bf16 file is widened to fp32 in
    memory, since the CPU provider has no bf16 MatMul: what is measured there is the rounding of weights, not of
    activations.

    Args:
        onnx_files: paths by file name.
        cases: from `rocline.export.reference.cases`.
        bound: the largest accepted difference, relative to an output's largest value where that is above 1.
        against: what the reference is, for the manifest.
        inputs: what was fed, for the manifest.
        target: the runtime the files were made for, for messages.
        torch_model: where given, a failure also names the first layer that differs.

    Returns:
        One entry an output of each file: the worst and the mean difference over its cases.

    Raises:
        ParityError: an output differs by more than the bound, has another shape, or is NaN or infinite where PyTorch's
            is not. The message names the worst output, its place, both values, and the first diverging layer.
        ExportError: ONNX Runtime does not load or run a file.
    """
    found: list[Difference] = []
    for name, path in onnx_files.items():
        own = [case for case in cases if case.model == name]
        if own:
            with ExitStack() as stack:
                session = open_session(path, stack)
                for case in own:
                    found.extend(_compare_case(session, case))
    worst = max(found, key=lambda difference: difference.relative, default=None)
    if worst is not None and worst.relative > bound:
        raise ParityError(_failure(worst, onnx_files[worst.case.model], bound, against, target, torch_model))
    return _rows(found, bound, against, inputs)


def open_session(path: Path, stack: ExitStack) -> Any:
    """Opens an ONNX file on ONNX Runtime's CPU provider, quietly, with rocline's operators where the file uses them.

    Args:
        path: the ONNX file.
        stack: keeps what the session needs (a widened copy of a bf16 file) until it is closed.

    Returns:
        The InferenceSession.

    Raises:
        ExportError: ONNX Runtime does not load it.
    """
    import onnxruntime

    outline = onnx_file.read(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if custom_ops.DOMAIN in outline.opsets:
        custom_ops.register(options)
    if outline.bfloat16:
        path = _widened(path, Path(stack.enter_context(tempfile.TemporaryDirectory())))
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"{path.name}: ONNX Runtime does not load it: {' '.join(str(error).split())}") from error


def _widened(path: Path, folder: Path) -> Path:
    import onnx

    from rocline.runtime.widen import widen_bfloat16

    model = onnx.load_model(path)
    widen_bfloat16(model)
    onnx.save_model(model, folder / path.name, save_as_external_data=True, location="weights")
    return folder / path.name


def _compare_case(session: Any, case: Case) -> list[Difference]:
    names = list(case.expected)
    try:
        outputs = session.run(names, case.feeds)
    except Exception as error:
        raise ExportError(
            f"{case.model}: ONNX Runtime fails in the {case.step}: {' '.join(str(error).split())}"
        ) from error
    return [difference(case, name, output) for name, output in zip(names, outputs, strict=True)]


def difference(case: Case, output: str, got: npt.NDArray[Any]) -> Difference:
    """Compares one output of a case with what PyTorch gave, over the positions that are not padding.

    Raises:
        ParityError: the shapes differ.
    """
    wanted = case.expected[output]
    if got.shape != wanted.shape:
        raise ParityError(
            f"{case.model}: output {output!r} has shape {got.shape} in the {case.step}, PyTorch's has {wanted.shape}"
        )
    if not got.size:
        return Difference(case, output, 0.0, 0.0, 0, (), 0.0, 0.0, 0.0)
    distance = absolute_difference(got, wanted)
    size = np.where(np.isfinite(wanted), np.abs(wanted), 0)
    count = distance.size
    if output in case.real:
        real = case.real[output]
        real = np.broadcast_to(real.reshape(real.shape + (1,) * (distance.ndim - real.ndim)), distance.shape)
        distance, size = np.where(real, distance, 0), np.where(real, size, 0)
        count = int(real.sum())
    place = np.unravel_index(int(distance.argmax()), distance.shape)
    return Difference(
        case=case,
        output=output,
        max_abs=float(distance[place]),
        total=float(distance.sum()),
        count=count,
        place=tuple(int(index) for index in place),
        got=float(got[place]),
        wanted=float(wanted[place]),
        peak=float(size.max()),
    )


def absolute_difference(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Returns |got - wanted|; infinite where just one is NaN or infinite, 0 where both are the same such value."""
    left, right = got.astype(np.float64), wanted.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        distance = np.where(same, 0.0, np.abs(left - right))
    return np.where(np.isnan(distance), np.inf, distance)


def _rows(found: list[Difference], bound: float, against: str, inputs: str) -> tuple[Parity, ...]:
    rows = []
    for model, output in dict.fromkeys((entry.case.model, entry.output) for entry in found):
        own = [entry for entry in found if (entry.case.model, entry.output) == (model, output)]
        rows.append(
            Parity(
                model=model,
                output=output,
                max_abs=max(entry.max_abs for entry in own),
                mean_abs=sum(entry.total for entry in own) / max(1, sum(entry.count for entry in own)),
                bound=bound * max(1.0, *(entry.peak for entry in own)),
                against=against,
                inputs=inputs,
            )
        )
    return tuple(rows)


def _failure(worst: Difference, path: Path, bound: float, against: str, target: Target, torch_model: Any) -> str:
    far = "is not finite" if not np.isfinite(worst.got) else f"is {worst.max_abs:.3g} off"
    message = (
        f"{path.name} for {target.name}: output {worst.output!r} {far} in the {worst.case.step}: {worst.got:.6g} at "
        f"{list(worst.place)}, {against} gives {worst.wanted:.6g}, bound {bound:.3g} of {max(1.0, worst.peak):.3g}"
    )
    if torch_model is None:
        return message
    from rocline.export import diverge

    return f"{message}; {diverge.describe(path, worst.case, bound)}"
