"""The operators of the ONNX domain ``rocline``: one shared library with a CPU and a GPU kernel for each.

An op is a folder below this one; :func:`specs` finds them. The library registers all of them at once:

    options = onnxruntime.SessionOptions()
    rocline.custom_ops.register(options)
"""

import os
import weakref
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from rocline.custom_ops.schema import Spec
from rocline.errors import RoclineError

DOMAIN = "rocline"
VERSION = 1
LIBRARY = "librocline_ops.so"

__all__ = ["DOMAIN", "LIBRARY", "VERSION", "cache_folder", "code_object_folders", "library_path", "register", "specs"]


def cache_folder() -> Path:
    """Where the library keeps what hiprtc compiled: ``ROCLINE_CACHE``, or below the user's cache folder.

    Raises:
        RoclineError: if the library is missing.
    """
    import ctypes

    function = ctypes.CDLL(str(library_path())).rocline_cache_folder
    function.restype = ctypes.c_char_p
    return Path(os.fsdecode(function()))


@cache
def specs() -> dict[str, Spec]:
    """Every operator by its ONNX name; a folder here with a ``spec.py`` is one."""
    from dataclasses import replace

    found = {}
    for path in sorted(Path(__file__).resolve().parent.glob("*/spec.py")):
        folder = path.parent.name
        spec: Spec = import_module(f"rocline.custom_ops.{folder}.spec").SPEC
        found[spec.name] = replace(spec, folder=folder)
    return found


def code_object_folders() -> list[Path]:
    """Where code objects are looked for, in the library's order: ``ROCLINE_CODE_OBJECTS``, then beside the library.

    Raises:
        RoclineError: if the library is missing.
    """
    extra = os.environ.get("ROCLINE_CODE_OBJECTS")
    return [*([Path(extra)] if extra else []), library_path().parent / "code_objects"]


def library_path() -> Path:
    """The shared library that holds every operator; ``ROCLINE_OPS_LIBRARY`` names another one.

    Raises:
        RoclineError: if there is no library, which is a source tree that was never built.
    """
    chosen = os.environ.get("ROCLINE_OPS_LIBRARY")
    if chosen:
        path = Path(chosen).absolute()
        if not path.is_file():
            raise RoclineError(f"ROCLINE_OPS_LIBRARY: {path} is not a file; name a {LIBRARY}, or unset it")
        return path
    here = Path(__file__).resolve().parent / LIBRARY
    # An editable install keeps the sources here and what CMake built in site-packages.
    for path in (here, Path(str(metadata.distribution("rocline").locate_file(f"rocline/custom_ops/{LIBRARY}")))):
        if path.is_file():
            return path
    raise RoclineError(f"the operator library {LIBRARY} is not built; run: pip install --no-deps -e . (in the sources)")


_registered: weakref.WeakSet[Any] = weakref.WeakSet()


def register(session_options: Any) -> None:
    """Makes the operators known to the sessions made from an ``onnxruntime.SessionOptions``; twice is harmless.

    Raises:
        RoclineError: if the library is missing or ONNX Runtime refuses it.
    """
    if session_options in _registered:
        return
    path = library_path()
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime's errors share no public base class
        raise RoclineError(f"{path}: ONNX Runtime refused the operator library: {error}") from error
    _registered.add(session_options)
