"""What an operator's ``spec.py`` is written with: its interface, and the cases that every kernel of it must pass.

Nothing heavy is imported here: a spec is data, and its functions import NumPy when they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]
    Source: TypeAlias = tuple[int, ...] | Callable[[np.random.Generator], Array]

Shape: TypeAlias = tuple[int, ...]
FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Argument:
    """One input or output.

    Attributes:
        name: as in the schema of ``op.cc``.
        dtype: ``"T"``, the op's own floating dtype, or a NumPy name such as ``"int64"``.
        optional: may be left off a node's end.
        shape: its shape in words, for readers.
    """

    name: str
    dtype: str = "T"
    optional: bool = False
    shape: str = ""


@dataclass(frozen=True)
class Tolerance:
    """How far a kernel may be from the reference: ``|got - expected| <= absolute + relative * |expected|``."""

    relative: float = 0.0
    absolute: float = 0.0


@dataclass(frozen=True)
class Case:
    """One test of an op, run for each of its dtypes.

    Attributes:
        name: unique in the op.
        inputs: for each input a shape (filled with standard normal numbers) or a function of a seeded generator that
            makes the array; optional inputs may be missing. Arrays for ``T`` inputs are float32, and rounded to the
            dtype under test before the reference sees them.
        attributes: of the node.
        outputs: how many outputs the node has; None for all.
        alias: output name -> name of the input whose buffer it is bound to, for updates in place.
        dtypes: of the case; None for all of the op's.
    """

    name: str
    inputs: Mapping[str, Source]
    attributes: Mapping[str, int | float | str] = field(default_factory=dict)
    outputs: int | None = None
    alias: Mapping[str, str] = field(default_factory=dict)
    dtypes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Refusal:
    """Inputs that the op must refuse, with ``message``, a regular expression, in ONNX Runtime's error."""

    case: Case
    message: str


@dataclass(frozen=True)
class Benchmark:
    """A case that is timed on a GPU; its traffic is every byte of its inputs and outputs once, or ``bytes``."""

    case: Case
    dtype: str = "float16"
    bytes: int | None = None


@dataclass(frozen=True)
class Spec:
    """An operator.

    Attributes:
        name: the op type in ONNX.
        inputs, outputs: in order; optional inputs last.
        attributes: name -> default.
        infer: from input shapes by name and attributes to output shapes by name.
        cases: the shapes that every dtype and provider runs, odd and empty ones among them.
        refusals: what must be an error.
        benchmarks: what is timed on a GPU.
        tolerances: by dtype; by default exact.
        output_tolerances: by output name, for outputs that differ from ``tolerances``; an output named here with None
            is workspace and not compared.
        dtypes: of ``T``.
    """

    name: str
    inputs: Sequence[Argument]
    outputs: Sequence[Argument]
    attributes: Mapping[str, int | float | str]
    infer: Callable[[Mapping[str, Shape], Mapping[str, Any]], dict[str, Shape]]
    cases: Sequence[Case]
    refusals: Sequence[Refusal] = ()
    benchmarks: Sequence[Benchmark] = ()
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict)
    output_tolerances: Mapping[str, Mapping[str, Tolerance] | None] = field(default_factory=dict)
    dtypes: tuple[str, ...] = FLOATS
    folder: str = ""

    def tolerance(self, output: str, dtype: str) -> Tolerance | None:
        """What ``output`` may differ by in ``dtype``; None if it is not compared."""
        tolerances = self.output_tolerances.get(output, self.tolerances)
        return None if tolerances is None else tolerances.get(dtype, Tolerance())

    def reference(self, inputs: Mapping[str, Array], attributes: Mapping[str, Any]) -> dict[str, Array]:
        """What the op must give, from ``reference.py``: ``T`` tensors come and go as float32.

        ``reference.py`` has one function, ``reference(**inputs, **attributes)``, that returns a dict by output name.
        """
        module = import_module(f"rocline.custom_ops.{self.folder}.reference")
        found: dict[str, Array] = module.reference(**inputs, **{**self.attributes, **attributes})
        return found
