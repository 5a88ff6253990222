"""One HIP runtime in the process, the one that ONNX Runtime's provider uses.

Streams and pointers of one runtime are strangers to another, and a machine easily has several: ROCm's, a distribution's
older one, and the one in AMD's rocm_sdk wheels. hip-python opens ``libamdhip64.so`` by rules of its own, at the first
call; the provider library names ``libamdhip64.so.7`` (say) in its DT_NEEDED. So the file that the latter means is found
and loaded first, hip-python is pointed at it, and the process's maps are compared.
"""

import ctypes
import os
from pathlib import Path
from typing import Any

from rocline.errors import DeviceError
from rocline.runtime import probe
from rocline.runtime.elf import ElfError, read_dynamic
from rocline.runtime.libraries import Loader
from rocline.runtime.providers import PROVIDERS

_STEM = "libamdhip64.so"


def load() -> tuple[Path, Any]:
    """Returns the provider's runtime, and hip-python's module ``hip`` held to it.

    Raises:
        DeviceError: hip-python or the runtime is missing, or a second runtime is in the process.
        ProviderError: there is no onnxruntime, or more than one package provides it.
    """
    runtime = provider_runtime(provider_library())
    check(runtime)
    try:
        ctypes.CDLL(str(runtime))
    except OSError as error:
        raise DeviceError(f"{runtime}: cannot be loaded: {error}") from None
    try:
        from rocm.bindings import hip
        from rocm.bindings.util import paths
    except ImportError as error:
        raise DeviceError(f"hip-python cannot be imported ({error}): run pip install 'rocline[rocm]'") from None

    def chosen(shortname: str, bundled_location: Path | None = None) -> bytes:
        return os.fsencode(runtime) if shortname == "amdhip64" else search(shortname, bundled_location)

    search, paths.get_library_path = paths.get_library_path, chosen
    try:
        # Opens the library without calling into it; hip-python keeps what it opened.
        opened = hip.has_symbol("hipMalloc")
    finally:
        paths.get_library_path = search
    check(runtime)
    if not opened:
        raise DeviceError(f"{runtime}: hip-python cannot use it, it has no hipMalloc")
    return runtime, hip


def provider_library() -> Path:
    """Returns the provider library for AMD GPUs of this environment's onnxruntime.

    Raises:
        DeviceError: it has none.
        ProviderError: there is no onnxruntime, or more than one package provides it.
    """
    installation = probe.installation()
    names = [row.library for row in PROVIDERS.values() if row.vendor == "amd" and row.library]
    for name in names:
        if (installation.libraries / name).is_file():
            return installation.libraries / name
    raise DeviceError(
        f"{installation.package} has no provider for AMD GPUs ({' or '.join(names)}): run pip install 'rocline[rocm]'"
    )


def provider_runtime(library: Path, loader: Loader | None = None) -> Path:
    """Returns the file of the HIP runtime that the dynamic loader gives to ``library``.

    Args:
        library: a provider library.
        loader: the loader's view; this process's if None.

    Raises:
        DeviceError: ``library`` cannot be read, needs no HIP runtime, or the loader would not find it.
    """
    loader = loader or Loader()
    try:
        needed = next((name for name in read_dynamic(library).needed if name.startswith(_STEM)), None)
    except ElfError as error:
        raise DeviceError(str(error)) from None
    if needed is None:
        raise DeviceError(f"{library} needs no {_STEM}")
    found = loader.resolve(needed, library)
    if found is None:
        others = ", ".join(map(str, loader.versions(_STEM)))
        raise DeviceError(
            f"{needed} not found (needed by {library.name}){f', only {others}' if others else ''}: "
            "install the ROCm that this onnxruntime was built for, or set LD_LIBRARY_PATH to its folder"
        )
    return found.resolve()


def check(runtime: Path, maps: Path = Path("/proc/self/maps")) -> None:
    """Compares the HIP runtimes in this process with the provider's.

    Args:
        runtime: the provider's.
        maps: the list of files mapped into the process.

    Raises:
        DeviceError: another one is loaded; both are named.
    """
    for mapped in mapped_runtimes(maps):
        if not _same_file(mapped, runtime):
            raise DeviceError(
                f"two HIP runtimes: {mapped} is loaded in this process, but ONNX Runtime's provider uses {runtime}; "
                "remove one of them, or open the session before what loads the other"
            )


def mapped_runtimes(maps: Path) -> list[Path]:
    """Returns the files of HIP runtimes that are mapped into the process."""
    paths = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if f"/{_STEM}" in line}
    return sorted(Path(path) for path in paths)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
