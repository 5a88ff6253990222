"""Builds our kernels for the host, for the module interface of the simulated device.

One library an op and wave size, of the op's kernel.hip against the emulation header of tests/custom_ops/emulate, with a
list of its kernels. Every access of theirs is instrumented, so that the simulator can check it.
"""

import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build

REPOSITORY = build.HERE.parent.parent
OPS = REPOSITORY / "custom_ops"
EMULATION = build.HERE.parent / "custom_ops" / "emulate"
FLAGS = (
    *("-std=gnu++17", "-O1", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-fno-strict-aliasing"),
    # A lock around the emulation's static block would be an atomic access, which is instrumented too.
    "-fno-threadsafe-statics",
    *("-ffp-contract=off", "-Wno-psabi", "-Wno-unknown-pragmas", "-mavx2", "-mfma", "-mf16c", "-g1"),
    *("-I", str(EMULATION), "-I", str(OPS), "-I", str(build.SOURCES)),
)
_KERNEL = re.compile(r'extern "C" __attribute__\(\(visibility\("default"\)\)\)[^;{]*?\bvoid\s+(\w+)\s*\(')


def op_folders() -> list[Path]:
    """The operators' folders, in order."""
    return sorted(path.parent for path in OPS.glob("*/kernel.hip"))


def kernel_names(op: Path, wave: int) -> list[str]:
    """The kernels of an op, as its source names them after the preprocessor's work."""
    source = str(op / "kernel.hip")
    text = build.run([*build.compiler(), *FLAGS, f"-DROCLINE_WAVE={wave}", "-E", "-P", "-x", "c++", source])
    return _KERNEL.findall(" ".join(text.split()))


def _compile(op: Path, wave: int, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as work:
        source = Path(work) / f"{op.name}.cc"
        lines = [f'#include "{op / "kernel.hip"}"', '#include "kernels/entry.h"', "using namespace rocline;"]
        lines += ['extern "C" __attribute__((visibility("default"))) const hipsim::KernelEntry hipsim_kernels[] = {']
        lines += [f"    HIPSIM_KERNEL({name})," for name in kernel_names(op, wave)]
        source.write_text("\n".join([*lines, "    {nullptr, 0, nullptr, nullptr}};", ""]))
        flags = [*build.compiler(), *FLAGS, f"-DROCLINE_WAVE={wave}"]
        kernels, callbacks = Path(work) / "kernels.o", Path(work) / "callbacks.o"
        build.run([*flags, "-fsanitize=thread", "-c", str(source), "-o", str(kernels)])
        build.run([*flags, "-c", str(build.SOURCES / "kernels" / "callbacks.cc"), "-o", str(callbacks)])
        build.run([*flags, "-shared", str(kernels), str(callbacks), "-o", str(folder / f"{op.name}.so")])


def build_kernels(wave: int) -> Path:
    """The folder of the libraries for waves of 32 or 64 lanes, built if a source has changed."""
    headers = [*OPS.rglob("*.h"), *EMULATION.rglob("*.h"), *(build.SOURCES / "kernels").iterdir()]
    sources = sorted({*headers, *(op / "kernel.hip" for op in op_folders()), Path(__file__)})
    flags = " ".join([*build.compiler(), *FLAGS]).encode()

    def make(folder: Path) -> None:
        folder.mkdir()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda op: _compile(op, wave, folder), op_folders()))

    key = build.digest([flags, *(path.read_bytes() for path in sources)])
    return build.made(build.CACHE / f"kernels-{wave}-{key}", make)
