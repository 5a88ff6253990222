"""Builds the kernels: a code object for each operator and AMD architecture, with no ROCm on the machine.

The compiler is the clang that ``pip install ziglang`` brings, or the one that ``ROCLINE_HIP_CLANG`` names. CMake runs
this file as a script while the package is built, so it imports the standard library and ``rocline.errors`` alone.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rocline.errors import RoclineError

FOLDER = Path(__file__).resolve().parent

# Each generic target runs on every GPU of its family: the choice for one that has no code object of its own.
GENERIC = {
    "gfx9-generic": ("gfx900", "gfx902", "gfx904", "gfx906", "gfx909", "gfx90c"),
    "gfx9-4-generic": ("gfx940", "gfx941", "gfx942", "gfx950"),
    "gfx10-1-generic": ("gfx1010", "gfx1011", "gfx1012", "gfx1013"),
    "gfx10-3-generic": ("gfx1030", "gfx1031", "gfx1032", "gfx1033", "gfx1034", "gfx1035", "gfx1036"),
    "gfx11-generic": ("gfx1100", "gfx1101", "gfx1102", "gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"),
    "gfx12-generic": ("gfx1200", "gfx1201"),
}
EXACT = (
    *("gfx900", "gfx906", "gfx908", "gfx90a", "gfx942", "gfx950", "gfx1030", "gfx1036", "gfx1100", "gfx1101"),
    *("gfx1102", "gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153", "gfx1200", "gfx1201"),
)
ARCHITECTURES = (*EXACT, *GENERIC)


def op_folders() -> list[Path]:
    """The operators' folders, in order: every folder here with a ``spec.py`` and a ``kernel.hip``."""
    return sorted(path.parent for path in FOLDER.glob("*/spec.py") if (path.parent / "kernel.hip").is_file())


def compiler() -> tuple[list[str], list[str]]:
    """The command lines of a clang that builds for AMD GPUs and of its ld.lld.

    Raises:
        RoclineError: if neither ``ROCLINE_HIP_CLANG`` nor the package ziglang gives one.
    """
    chosen = os.environ.get("ROCLINE_HIP_CLANG")
    if chosen:
        clang = Path(chosen)
        lld = next(
            (path for path in (clang.with_name("ld.lld"), clang.resolve().with_name("ld.lld")) if path.is_file()), None
        )
        if not clang.is_file() or lld is None:
            raise RoclineError(
                f"ROCLINE_HIP_CLANG: {chosen} is not a clang with ld.lld beside it; unset it for ziglang's"
            )
        return [str(clang)], [str(lld)]
    package = importlib.util.find_spec("ziglang")
    if package is None or not package.submodule_search_locations:
        raise RoclineError("no compiler for AMD GPUs: pip install ziglang, or set ROCLINE_HIP_CLANG to a clang")
    zig = str(Path(package.submodule_search_locations[0]) / "zig")
    return [zig, "clang"], [zig, "ld.lld"]


def _run(command: Sequence[str | Path], what: str) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RoclineError(
            f"{what}: {Path(command[0]).name} failed with status {done.returncode}:\n{done.stderr.strip()}"
        )


def compile_code_object(source: Path, architecture: str, out: Path) -> None:
    """Compiles one kernel source to the code object ``out`` for one architecture.

    Raises:
        RoclineError: with the compiler's messages, if the source does not compile.
    """
    clang, lld = compiler()
    version = "6" if architecture in GENERIC else "5"  # generic targets exist from code object version 6 on
    what = f"{source} for {architecture}"
    target = ["-nogpulib", f"-mcode-object-version={version}", "-O3"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        ir, obj, linked = (Path(folder) / name for name in ("kernel.ll", "kernel.o", "kernel.co"))
        # clang's own link step looks for a program named lld, which ziglang does not have: two steps and ld.lld.
        language = [
            "-x",
            "hip",
            "--cuda-device-only",
            "--no-gpu-bundle-output",
            "-nogpuinc",
            "-std=c++17",
            "-I",
            str(FOLDER),
        ]
        strict = ["-fno-math-errno", "-Wall", "-Wextra", "-Werror"]
        _run(
            [
                *clang,
                *language,
                *target,
                *strict,
                f"--offload-arch={architecture}",
                "-S",
                "-emit-llvm",
                source,
                "-o",
                ir,
            ],
            what,
        )
        # The first step has optimised: only code generation is left.
        target += ["--target=amdgcn-amd-amdhsa", f"-mcpu={architecture}", "-Xclang", "-disable-llvm-passes"]
        _run([*clang, *target, "-c", ir, "-o", obj], what)
        _run([*lld, "-shared", obj, "-o", linked], what)
        linked.replace(out)


def build_op(op: str, architectures: Iterable[str], out: Path) -> list[Path]:
    """Compiles an op's kernels into ``out/ARCHITECTURE/OP.co``, several architectures at a time.

    Raises:
        RoclineError: if there is no such op, or a compilation fails.
    """
    source = FOLDER / op / "kernel.hip"
    if not source.is_file():
        known = ", ".join(folder.name for folder in op_folders())
        raise RoclineError(f"op {op!r}: {source} does not exist; the operators are {known}")
    targets = [(architecture, out / architecture / f"{op}.co") for architecture in architectures]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda target: compile_code_object(source, *target), targets))
    return [path for _, path in targets]


def amalgamate(source: Path) -> str:
    """A kernel source with its own includes written out, each once: what is compiled at run time needs no files."""
    seen: set[Path] = set()

    def expand(path: Path) -> str:
        if path in seen:
            return ""
        seen.add(path)
        text = path.read_text().replace("#pragma once\n", "")
        return re.sub(
            r'^#include "([^"]+)"[^\n]*\n', lambda found: expand(resolve(path, found[1])), text, flags=re.MULTILINE
        )

    def resolve(path: Path, name: str) -> Path:
        beside = path.parent / name
        return beside if beside.is_file() else FOLDER / name

    return expand(source)


def generated_source() -> str:
    """The C++ tables of the library that are known here: kernel sources, and the family of each architecture."""
    lines = ['#include "gpu/generated.h"', "namespace rocline::gpu {", "const KernelSource kernel_sources[] = {"]
    for folder in op_folders():
        # A string literal has a limit of 64 KB in some compilers: bytes have none.
        data = ",".join(str(byte) for byte in amalgamate(folder / "kernel.hip").encode())
        lines.append(f'{{"{folder.name}", (const char[]){{{data},0}}}},')
    lines += ["{nullptr, nullptr}};", "const Family families[] = {"]
    lines += [f'{{"{member}", "{generic}"}},' for generic, members in GENERIC.items() for member in members]
    lines += ["{nullptr, nullptr}};", "}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The script that CMake runs: ``kernels OP OUT`` or ``generate FILE``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("kernels", "generate"))
    parser.add_argument("arguments", nargs="+")
    options = parser.parse_args()
    if options.step == "generate":
        Path(options.arguments[0]).write_text(generated_source())
        return
    op, out = options.arguments
    start = time.perf_counter()
    try:
        built = build_op(op, ARCHITECTURES, Path(out))
    except RoclineError as error:
        sys.exit(str(error))
    size = sum(path.stat().st_size for path in built)
    print(f"{op}: {len(built)} code objects, {size / 1024:.0f} KB, {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
