"""Builds the operator library with its GPU kernels compiled for the host, where a fiber stands for a GPU thread.

ONNX Runtime's CPU provider then runs each op's device path: its launches, and its kernels for waves of 32 or 64.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rocline.custom_ops import LIBRARY, build

STANDINS = Path(__file__).resolve().parent / "custom_ops" / "emulate"
FLAGS = [
    *("-std=gnu++17", "-O1", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"),
    *("-fno-strict-aliasing", "-ffp-contract=off", "-Wno-psabi", "-Wno-unknown-pragmas", "-mavx2", "-mfma", "-mf16c"),
    *("-I", str(STANDINS), "-I", str(build.FOLDER)),
]


def compiler() -> list[str]:
    """The system's C++ compiler, or ziglang's."""
    found = shutil.which(os.environ.get("CXX", "c++"))
    return [found] if found else [sys.executable, "-m", "ziglang", "c++"]


def _compile(arguments: list[str]) -> None:
    done = subprocess.run([*compiler(), *FLAGS, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def compile_program(source: Path, out: Path, wave: int) -> None:
    """Compiles a program that launches a kernel of its own."""
    _compile([f"-DROCLINE_WAVE={wave}", str(source), "-o", str(out)])


def build_library(folder: Path, wave: int) -> Path:
    """The path of the library below ``folder``; the kernels of each op lie beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    ops = [op for op in build.op_folders() if (op / "kernel.hip").is_file() and (op / "op.cc").is_file()]
    define = f"-DROCLINE_WAVE={wave}"
    jobs = [[define, "-shared", "-x", "c++", str(op / "kernel.hip"), "-o", str(folder / f"{op.name}.so")] for op in ops]
    objects = []
    for op in ops:
        objects.append(folder / f"{op.name}.o")
        source = [f'-DROCLINE_OP="{op.name}"', "-c", str(op / "op.cc"), "-o", str(objects[-1])]
        jobs.append(source)
    for source in (build.FOLDER / "ort" / name for name in ("library.cc", "context.cc")):
        objects.append(folder / f"{source.stem}.o")
        jobs.append(["-DROCLINE_EMULATED", "-c", str(source), "-o", str(objects[-1])])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_compile, jobs))
    library = folder / LIBRARY
    _compile(["-shared", *map(str, objects), "-o", str(library), "-ldl"])
    return library
