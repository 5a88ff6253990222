"""The table of every kernel's registers and memory, from the code objects that the build made."""

from collections.abc import Sequence
from dataclasses import fields

from rocline.custom_ops import code_object_folders, specs
from rocline.custom_ops.build import ARCHITECTURES
from rocline.custom_ops.code_object import KernelInfo, read_kernels
from rocline.errors import RoclineError

_HEAD = """# Kernels

What the compiler made of every kernel for every architecture. `rocline ops table docs/kernels.md` writes this page, and
a test holds it against the code objects. None of it was measured on a GPU.

VGPR: vector registers a lane, with accumulators (AGPR) among them; SGPR: scalar registers a wave; LDS: bytes a
work-group, less what a launch adds; scratch: bytes a lane. No kernel spills. Architectures with equal rows share one.
"""


def kernels_by_architecture(folder: str) -> dict[str, list[KernelInfo]]:
    """The kernels of an op's folder, for each architecture that the package is built for.

    Raises:
        RoclineError: if an architecture has no code object.
    """
    root = code_object_folders()[-1]
    missing = [name for name in ARCHITECTURES if not (root / name / f"{folder}.co").is_file()]
    if missing:
        raise RoclineError(
            f"{root}: no code object of {folder} for {', '.join(missing)}; run: pip install --no-deps -e ."
        )
    return {name: read_kernels(root / name / f"{folder}.co") for name in ARCHITECTURES}


def kernel_table() -> str:
    """The page as Markdown."""
    return _HEAD + "".join(_section(spec.name, kernels_by_architecture(spec.folder)) for spec in specs().values())


def _section(op: str, kernels: dict[str, list[KernelInfo]]) -> str:
    rows: dict[tuple[object, ...], list[str]] = {}
    columns = [field.name for field in fields(KernelInfo)]
    for architecture, found in kernels.items():
        for kernel in found:
            rows.setdefault(tuple(getattr(kernel, column) for column in columns), []).append(architecture)
    lines = [
        f"\n## {op}\n",
        "| kernel | VGPR | AGPR | SGPR | LDS | scratch | wave | architectures |",
        "|---|" + "--:|" * 6 + "---|",
    ]
    shown: Sequence[str] = ("name", "vgprs", "agprs", "sgprs", "lds", "scratch", "wave")
    for row in sorted(rows, key=str):
        cells = [str(row[columns.index(column)]) for column in shown]
        lines.append(f"| {' | '.join(cells)} | {' '.join(name.removeprefix('gfx') for name in rows[row])} |")
    return "\n".join(lines) + "\n"
