"""The runtimes an export can aim at: one TOML file each, and for some the list of their kernels (see `kernels`).

A target answers what a graph may contain: the IR version and opset it may be written in, the dtypes, the operators.
"""

import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rocline import custom_ops
from rocline.errors import ExportError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Kernel:
    """One registration: the operator versions ``since`` to ``until`` (None: just ``since``'s own), for some types.

    Attributes:
        types: NumPy names, or ``bfloat16``; empty where the kernel's name does not tell them, as with operators that
            only move data and are registered for every type.
    """

    since: int
    until: int | None
    types: frozenset[str]

    @property
    def floats(self) -> frozenset[str]:
        """The floating-point types among them; none, too, where a kernel is named after the type of its indices."""
        return frozenset(name for name in self.types if "float" in name)


@dataclass(frozen=True)
class Target:
    """What the runtime that will load the graph can do.

    Attributes:
        name: as in ``rocline export --target NAME``.
        provider: ONNX Runtime's name of the execution provider.
        max_ir_version: the latest ONNX IR version that it loads.
        max_opset: the latest version of the default operator domain that it loads.
        dtypes: of ``fp32``, ``fp16``, ``bf16``: the dtypes that an export for it may have.
        contrib_ops: whether operators of the domain ``com.microsoft`` may be emitted.
        custom_ops: whether the provider runs rocline's own operators.
        never: operators that must not be emitted, with the reason.
        widens: dtypes that the runtime computes in float32 where it has no kernel, by Casts it inserts itself.
        kernels: the provider's kernels by domain and operator; None where no list is known, and everything is assumed.
        moves: operators whose kernel, though its name tells no types, is known to take bf16 too.
    """

    name: str
    provider: str
    max_ir_version: int
    max_opset: int
    dtypes: tuple[str, ...]
    contrib_ops: bool
    custom_ops: bool
    never: dict[str, str] = field(default_factory=dict)
    widens: tuple[str, ...] = ()
    kernels: dict[tuple[str, str], tuple[Kernel, ...]] | None = None
    moves: frozenset[str] = frozenset()

    def runs(self, op_type: str, dtype: str, domain: str = "", version: int | None = None) -> bool:
        """Tells whether an operator may be emitted for this target with its floating-point tensors in ``dtype``.

        Args:
            op_type: e.g. ``MatMul``.
            dtype: ``fp32``, ``fp16`` or ``bf16``.
            domain: ``""`` is ``ai.onnx``; rocline's own domain has a kernel in every dtype.
            version: the operator's own version (the opset that last changed it); None asks for any.
        """
        if op_type in self.never or dtype not in self.dtypes:
            return False
        if domain == "com.microsoft" and not self.contrib_ops:
            return False
        if domain == custom_ops.DOMAIN:
            return self.custom_ops
        if self.kernels is None:
            return True
        accepted = {DTYPES[dtype]} | ({"float32"} if dtype in self.widens else set())
        untyped = dtype != "bf16" or op_type in self.moves
        return any(
            _covers(kernel, version) and (not accepted.isdisjoint(kernel.floats) if kernel.floats else untyped)
            for kernel in self.kernels.get((domain or "ai.onnx", op_type), ())
        )

    def has_kernel(self, op_type: str, types: frozenset[str], domain: str = "", version: int | None = None) -> bool:
        """Tells whether the provider is expected to run a node of a graph.

        Args:
            op_type, domain, version: as in `runs`.
            types: of all its inputs and outputs, as NumPy names them. A half type among them is what it computes in,
                else float32; a node without floats needs a kernel that is registered for one of them.
        """
        dtype = next((dtype for dtype in ("bf16", "fp16", "fp32") if DTYPES[dtype] in types), None)
        if dtype is not None:
            return self.runs(op_type, dtype, domain, version)
        if domain == custom_ops.DOMAIN:
            return self.custom_ops
        if self.kernels is None:
            return op_type not in self.never
        return any(
            _covers(kernel, version) and (not kernel.types or not types.isdisjoint(kernel.types))
            for kernel in self.kernels.get((domain or "ai.onnx", op_type), ())
        )


def _covers(kernel: Kernel, version: int | None) -> bool:
    # ONNX Runtime matches an open-ended kernel to the operator version it starts at, and to no later one.
    return version is None or kernel.since <= version <= (kernel.until or kernel.since)


def available() -> list[str]:
    """Returns the names of all targets, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


@functools.cache
def load(name: str) -> Target:
    """Returns the target of that name.

    Raises:
        ExportError: there is none.
    """
    path = _FOLDER / f"{name}.toml"
    if name not in available():
        raise ExportError(f"target {name!r}: expected one of {', '.join(available())}")
    document = tomllib.loads(path.read_text("utf-8"))
    kernels = document.pop("kernels", None)
    return Target(
        name=name,
        dtypes=tuple(document.pop("dtypes")),
        widens=tuple(document.pop("widens", ())),
        kernels=read_kernels(_FOLDER / kernels) if kernels else None,
        moves=frozenset(document.pop("moves", ())),
        **document,
    )


def read_kernels(path: Path) -> dict[tuple[str, str], tuple[Kernel, ...]]:
    """Reads a ``*_kernels.txt`` file (the format is in `rocline.export.targets.kernels`)."""
    kernels: dict[tuple[str, str], tuple[Kernel, ...]] = {}
    for line in path.read_text("utf-8").splitlines():
        domain, op, versions, *types = line.split()
        since, _, until = versions.partition("-")
        named = frozenset(name for group in types for name in group.split("/"))
        kernel = Kernel(int(since), int(until) if until else None, named)
        kernels[domain, op] = (*kernels.get((domain, op), ()), kernel)
    return kernels
