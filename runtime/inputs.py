"""Checks what is fed to a model before ONNX Runtime sees it, and says all that is wrong in one line."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rocline.errors import InputError
from rocline.runtime.manifest import TensorSpec
from rocline.runtime.onnx_file import ANY_RANK, UNKNOWN


class InputCheck:
    """The checks of one model's inputs, prepared once so that a run costs a few comparisons.

    Args:
        inputs: what the model asks for.
        optional: inputs that have a default in the model.

    Attributes:
        required: names of the inputs that have no default.
    """

    def __init__(self, inputs: Sequence[TensorSpec], optional: Sequence[TensorSpec] = ()) -> None:
        self._specs = {spec.name: spec for spec in (*inputs, *optional)}
        self.required = tuple(spec.name for spec in inputs)
        self._plans = {name: _plan(spec) for name, spec in self._specs.items()}

    def __call__(self, feeds: Mapping[str, Any]) -> None:
        """Checks names, dtypes, ranks, fixed dimensions, and that a symbol has one size in all inputs.

        Raises:
            InputError: one line with every problem.
        """
        check_named(feeds)
        if not self._fit(feeds):
            raise InputError(self._explain(feeds))

    def _fit(self, feeds: Mapping[str, Any]) -> bool:
        plans = self._plans
        sizes: dict[str, int] = {}
        for name, array in feeds.items():
            plan = plans.get(name, _UNKNOWN_NAME)
            if plan is None:
                continue
            if plan is _UNKNOWN_NAME:
                return False
            dtype, rank, fixed, symbols = plan
            exact = array.__class__ is np.ndarray and array.dtype is dtype
            # Rarer, and as good: a subclass of ndarray, an equal dtype that is another object, any kind of string.
            if not exact and not (isinstance(array, np.ndarray) and not _dtype_problem(array, dtype)):
                return False
            shape = array.shape
            if len(shape) != rank and rank is not None:
                return False
            for axis, size in fixed:
                if shape[axis] != size:
                    return False
            for axis, symbol in symbols:
                size = shape[axis]
                if sizes.setdefault(symbol, size) != size:
                    return False
        return len(feeds) == len(plans) or all(name in feeds for name in self.required)

    def _explain(self, feeds: Mapping[str, Any]) -> str:
        problems = [f"input '{name}': missing, expected {_describe(self._specs[name])}" for name in self.required
                    if name not in feeds]  # fmt: skip
        sizes: dict[str, tuple[int, str]] = {}
        for name, array in feeds.items():
            spec = self._specs.get(name)
            if spec is None:
                problems.append(f"input '{name}': unknown, the model takes {', '.join(self._specs)}")
                continue
            plan = self._plans.get(name)
            if plan is None:
                continue
            dtype, rank, _, _ = plan
            if not isinstance(array, np.ndarray):
                problems.append(f"input '{name}': {type(array).__name__}, expected a NumPy array {_describe(spec)}")
                continue
            if wrong := _dtype_problem(array, dtype):
                problems.append(f"input '{name}': {wrong}, expected {spec.dtype}")
            if rank is None:
                continue
            if array.ndim != rank:
                problems.append(f"input '{name}': shape {array.shape}, expected {rank} dimensions {_shape(spec.shape)}")
                continue
            problem = _shape_problem(name, array.shape, spec.shape, sizes)
            if problem:
                problems.append(problem)
        return "; ".join(problems)


_Plan = tuple[np.dtype[Any], int | None, tuple[tuple[int, int], ...], tuple[tuple[int, str], ...]]
_STRING = np.dtype(str)
_UNKNOWN_NAME: _Plan = (np.dtype(bool), None, (), ())


def _plan(spec: TensorSpec) -> _Plan | None:
    """Returns dtype, rank, fixed axes and symbolic axes; None for what is no tensor, which ONNX Runtime checks."""
    dtype = numpy_dtype(spec.dtype)
    if dtype is None:
        return None
    if dtype.kind == "O":
        # No array has this one, so that every array of strings is looked at.
        dtype = _STRING
    if spec.shape == ANY_RANK:
        return dtype, None, (), ()
    fixed = tuple((axis, size) for axis, size in enumerate(spec.shape) if isinstance(size, int))
    symbols = tuple((axis, size) for axis, size in enumerate(spec.shape) if isinstance(size, str) and size != UNKNOWN)
    return dtype, len(spec.shape), fixed, symbols


def numpy_dtype(name: str) -> np.dtype[Any] | None:
    """Returns the NumPy dtype for a `TensorSpec`'s dtype name, or None if it is none of a tensor's.

    ``bfloat16`` is ml_dtypes' (a package that onnx brings), since NumPy has none; ``string`` is ``object``.
    """
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    if name == "string":
        return np.dtype(object)
    try:
        return np.dtype(name)
    except TypeError:
        return None


def check_named(tensors: Any) -> None:
    """Refuses what holds no tensors by name.

    Raises:
        InputError: it is no mapping.
    """
    if not isinstance(tensors, (dict, Mapping)):
        raise InputError(f"inputs: {type(tensors).__name__}, expected a mapping from names to tensors")


def with_objects(feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the same with strings as objects: ONNX Runtime 1.22 ends one in another array at its first NUL."""
    return {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in feeds.items()}


def _dtype_problem(array: np.ndarray[Any, Any], expected: np.dtype[Any]) -> str:
    """Says what ``array`` holds that is not ``expected``; nothing if it fits."""
    dtype = array.dtype
    if expected is _STRING and dtype.kind == "O":
        # ONNX Runtime would take str() of anything.
        return next((f"element {item!r}" for item in array.flat if not isinstance(item, str)), "")
    fits = dtype.kind == "U" if expected is _STRING else dtype == expected
    return "" if fits else f"dtype {dtype}"


def _shape_problem(
    name: str, shape: tuple[int, ...], wanted: tuple[int | str, ...], sizes: dict[str, tuple[int, str]]
) -> str | None:
    """Compares one shape; ``sizes`` holds what each symbol stands for so far, and which input said so."""
    others: dict[str, str] = {}
    fits = True
    for size, want in zip(shape, wanted, strict=True):
        if isinstance(want, int):
            fits = fits and size == want
        elif want != UNKNOWN:
            known, other = sizes.setdefault(want, (size, name))
            if known != size:
                fits = False
                others[want] = other
    if fits:
        return None
    # A symbol that this input is the first to give a size, and gives but one, stays a symbol.
    expected = [
        sizes[want][0] if want in others or (want in sizes and sizes[want][1] != name) else want for want in wanted
    ]
    match = "".join(f" to match '{other}'" for other in dict.fromkeys(others.values()) if other != name)
    return f"input '{name}': shape {shape}, expected {_shape(expected)}{match}"


def _shape(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _describe(spec: TensorSpec) -> str:
    return f"{spec.dtype} {_shape(spec.shape)}"
