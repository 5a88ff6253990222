#!/usr/bin/env python3
"""Builds the simulated ROCm libraries of src/ into build/hipsim/, once for each state of the sources.

What is there is whole, whoever else builds at the same time and whatever is killed in the middle (`made`).

Needs Python's own library and a C++ compiler: the system's, or that of the package ziglang.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "src"
CACHE = HERE.parent.parent / "build" / "hipsim"
SYMBOLS = HERE / "provider_symbols.txt"
"""What ONNX Runtime's ROCm provider wants from these libraries: NAME or NAME@VERSION, one a line."""

FLAGS = (
    *("-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-rtti", "-pthread"),
    *("-Wall", "-Wextra", "-Wno-format-zero-length", "-Wno-unused-parameter"),
)


@dataclass(frozen=True)
class Library:
    """One simulated library.

    Attributes:
        name: its soname.
        pattern: the provider's symbols that are this library's.
        sources: files and folders of src/.
        unsupported: what a function that is not simulated returns, as the library's "not supported".
        aliases: other names of the file.
    """

    name: str
    pattern: str
    sources: tuple[str, ...]
    unsupported: int
    aliases: tuple[str, ...] = ()


RUNTIME = Library(
    "libamdhip64.so.7", r"hip(?!blas|fft)|__hip", ("runtime", "modules", "provider"), 801, ("libamdhip64.so",)
)
LIBRARIES = (
    RUNTIME,
    Library("libhipblas.so.3", r"hipblas|rocblas", ("libraries/blas.cc", "libraries/gemm.cc"), 7),
    Library("libMIOpen.so.1", r"miopen", ("libraries/miopen.cc",), 6),
    Library("libhipfft.so.0", r"hipfft", (), 16),
    Library("librocm_smi64.so.1", r"rsmi", ("libraries/smi.cc",), 2),
    Library("libroctracer64.so.4", r"roctracer", (), 1),
)


@functools.cache
def compiler() -> tuple[str, ...]:
    """The system's C++ compiler, or ziglang's of this interpreter, of the checkout's or of the command's."""
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found:
        return (found,)
    checkout = HERE.parent.parent / ".venv" / "bin" / "python"
    for python in (sys.executable, str(checkout), shutil.which("python3") or ""):
        zig = (python, "-m", "ziglang", "c++")
        if python and not subprocess.run([*zig, "--version"], capture_output=True, check=False).returncode:
            return zig
    raise SystemExit("hipsim: no C++ compiler: install g++ or clang++, or run 'pip install ziglang'")


def source_files(library: Library) -> list[Path]:
    """The library's .cc files, in order."""
    found: list[Path] = []
    for name in library.sources:
        path = SOURCES / name
        found += sorted(path.rglob("*.cc")) if path.is_dir() else [path]
    return found


def digest(parts: Iterable[bytes]) -> str:
    """A name for what is made of these parts."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()[:20]


def run(command: Sequence[str]) -> str:
    """Runs a compiler and returns its output; its errors end the program."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"hipsim: {' '.join(command)}\n{done.stderr[-6000:]}")
    return done.stdout


def made(path: Path, make: Callable[[Path], None]) -> Path:
    """Returns ``path``, a file or folder in `CACHE`, after making it if it is not there.

    It is made at another place and renamed, by one process at a time: so it is whole or not there at all. What nobody
    has used for a day goes when something new is made.

    Args:
        path: where it is to be, by a name that says what it is made of.
        make: makes it at the path that it is given; runs under a lock, so it may not call this.
    """
    with contextlib.suppress(FileNotFoundError):
        os.utime(path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="making-") as folder:
                partial = Path(folder) / path.name
                make(partial)
                partial.rename(path)
            _forget(("[0-9a-f]*", "kernels-*", "making-*", "paths-*", "machines/*", "objects/*"))
    return path


def _forget(patterns: Iterable[str]) -> None:
    for path in (path for pattern in patterns for path in CACHE.glob(pattern)):
        if time.time() - path.stat().st_mtime < 24 * 3600:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _compile(compile_with: Sequence[str], source: Path, shared: bytes) -> Path:
    """The object file of a source: compiled, or from the cache."""
    flags = (*compile_with, *FLAGS)
    key = digest([shared, str(source.name).encode(), source.read_bytes(), *(flag.encode() for flag in flags)])
    made = CACHE / "objects" / f"{key}.o"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=made.parent, suffix=".o", delete=False) as file:
            partial = Path(file.name)
        run([*flags, "-c", str(source), "-o", str(partial)])
        partial.replace(made)
    return made


def _stubs(library: Library, symbols: list[tuple[str, str]]) -> str:
    """Weak definitions of all that the provider wants: those that a source defines take their place."""
    lines = ['extern "C" int hipsim_unimplemented(const char*, int);']
    for name, _ in symbols:
        body = f'{{ return hipsim_unimplemented("{name}", {library.unsupported}); }}'
        lines.append(f'extern "C" __attribute__((weak, visibility("default"))) int {name}() {body}')
    return "\n".join(lines) + "\n"


def _version_script(library: Library, symbols: list[tuple[str, str]]) -> str:
    """Exports the library's own functions, with the versions by which the provider asks for them."""
    versions: dict[str, list[str]] = {}
    for name, version in symbols:
        versions.setdefault(version, []).append(name)
    if library is RUNTIME:
        first = min(version for version in versions if version)
        versions[first] += ["hip*", "__hip*"]
        versions["HIPSIM"] = ["hipsim_*", "_ZN6hipsim*", "_ZNK6hipsim*"]
    names = sorted(name for name in versions if name)
    if not names:
        exported = "; ".join([*versions.get("", []), f"{library.pattern.split('|')[0]}*"])
        return f"{{ global: {exported}; local: *; }};\n"
    text, parent = "", ""
    for name in names:
        hidden = "" if parent else " local: *;"
        text += f"{name} {{ global: {'; '.join(versions[name])};{hidden} }}{parent};\n"
        parent = f" {name}"
    return text


def _link(
    compile_with: Sequence[str], library: Library, objects: list[Path], folder: Path, symbols: list[tuple[str, str]]
) -> None:
    work = folder / "work"
    work.mkdir(exist_ok=True)
    stubs = work / f"{library.name}.stubs.cc"
    stubs.write_text(_stubs(library, symbols))
    script = work / f"{library.name}.map"
    script.write_text(_version_script(library, symbols))
    runtime = [] if library is RUNTIME else [str(folder / RUNTIME.name)]
    run(
        [
            *(*compile_with, *FLAGS, "-shared", f"-Wl,-soname,{library.name}", f"-Wl,--version-script={script}"),
            *(*map(str, objects), str(stubs), *runtime, "-ldl", "-o", str(folder / library.name)),
        ]
    )
    for alias in library.aliases:
        (folder / alias).symlink_to(library.name)


def provider_symbols() -> list[tuple[str, str]]:
    """Name and version (may be empty) of what the provider wants."""
    lines = SYMBOLS.read_text().split()
    return [(name, version) for name, _, version in (line.partition("@") for line in lines)]


def build() -> Path:
    """Returns the folder of the libraries, after building them if the sources have changed."""
    compile_with = compiler()
    headers = sorted(SOURCES.rglob("*.h"))
    shared = digest(path.read_bytes() for path in headers).encode()
    sources = {library: source_files(library) for library in LIBRARIES}
    everything = [path.read_bytes() for files in sources.values() for path in files]
    own = [Path(__file__).read_bytes(), SYMBOLS.read_bytes(), " ".join(compile_with).encode()]
    folder = CACHE / digest([shared, *own, *everything])
    return made(folder, lambda partial: _build(compile_with, shared, sources, partial))


def _build(compile_with: Sequence[str], shared: bytes, sources: dict[Library, list[Path]], folder: Path) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {
            library: [pool.submit(_compile, compile_with, path, shared) for path in files]
            for library, files in sources.items()
        }
        objects = {library: [job.result() for job in made] for library, made in jobs.items()}
    wanted = provider_symbols()
    folder.mkdir()
    for library in LIBRARIES:
        symbols = [(name, version) for name, version in wanted if re.match(library.pattern, name)]
        _link(compile_with, library, objects[library], folder, symbols)
    shutil.rmtree(folder / "work")


if __name__ == "__main__":
    print(build())
