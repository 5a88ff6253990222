"""Tensors on the command line: read from files, made up, described, saved."""

import contextlib
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rocline.errors import InputError
from rocline.runtime.inputs import numpy_dtype
from rocline.runtime.manifest import TensorSpec
from rocline.runtime.onnx_file import ANY_RANK

Array = np.ndarray[Any, Any]


def load(name: str, file: Path) -> Array:
    """Reads one array: all of a .npy file, or the array ``name`` (or the only one) of a .npz file.

    Raises:
        InputError: the file cannot be read, holds Python objects, or has no such array.
    """
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            names = loaded.files
            if name in names or len(names) == 1:
                array: Array = loaded[name if name in names else names[0]]
                return array
    except FileNotFoundError:
        raise InputError(f"input '{name}': {file}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"input '{name}': {file}: no .npy or .npz file that can be read: {reason}") from None
    raise InputError(f"input '{name}': {file} has no array of this name, only {', '.join(names)}")


def make_up(
    specs: Sequence[TensorSpec], *, seed: int, sizes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """Returns an array for each input: floats are normally distributed, whole numbers 0 or 1, strings empty.

    Args:
        specs: the inputs.
        seed: of the random numbers.
        sizes: size by symbol. A symbol that is a sum of others, as in ``past + new``, adds up; what is left open is 1.
        shapes: whole shapes by input name; they win.

    Raises:
        InputError: a symbol or name is unknown, or an input's dtype cannot be made up.
    """
    _check_known("--dim", sizes, {size for spec in specs for size in spec.shape if isinstance(size, str)})
    _check_known("--shape", shapes, {spec.name for spec in specs})
    generator = np.random.default_rng(seed)
    arrays = {}
    for spec in specs:
        shape = shapes.get(spec.name)
        if shape is None:
            open_rank = spec.shape == ANY_RANK
            shape = () if open_rank else tuple(_size(size, sizes) for size in spec.shape)
        arrays[spec.name] = _random(spec, shape, generator)
    return arrays


def _check_known(option: str, given: Mapping[str, Any], known: set[str]) -> None:
    for name in given:
        if name not in known:
            raise InputError(f"{option} {name}: unknown, the model has {', '.join(sorted(known)) or 'none'}")


def _size(size: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    if size in sizes:
        return sizes[size]
    terms = [term.strip() for term in size.split("+")]
    return sum(int(term) if term.isdecimal() else sizes.get(term, 1) for term in terms)


def _random(spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    dtype = numpy_dtype(spec.dtype)
    if dtype is None:
        raise InputError(f"input '{spec.name}': {spec.dtype} cannot be made up, give it with --input")
    if dtype.kind == "O":
        return np.full(shape, "", object)
    if dtype.kind in "biu":
        return generator.integers(0, 2, shape).astype(dtype)
    return np.asarray(generator.standard_normal(shape)).astype(dtype)


def describe(name: str, array: Any) -> dict[str, Any]:
    """Returns name, dtype, shape and, by dtype, the range, mean and count of NaNs, or the first strings."""
    if not isinstance(array, np.ndarray):
        return {"name": name, "dtype": type(array).__name__}
    found: dict[str, Any] = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
    if array.dtype.kind in "OU":
        return {**found, "dtype": "string", "first": [str(text) for text in array.flat[:3]]}
    # Sums of float16 would overflow, and ml_dtypes' types are no numbers to NumPy.
    values = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    nan = np.isnan(values)
    found["nan"] = int(nan.sum())
    finite = values[~nan]
    if finite.size and array.dtype.kind != "c":
        with np.errstate(invalid="ignore"):
            found |= {"min": finite.min().item(), "max": finite.max().item(), "mean": finite.mean().item()}
    return found


def describe_line(found: Mapping[str, Any]) -> str:
    """Returns the same as `describe` as one line of text."""
    shape = f" {found['shape']}" if "shape" in found else ""
    parts = [f"{key} {found[key]:.6g}" for key in ("min", "max", "mean") if key in found]
    if "nan" in found:
        parts.append(f"NaN {found['nan']}")
    if "first" in found:
        parts.append("first " + ", ".join(map(repr, found["first"])))
    return f"{found['name']}: {found['dtype']}{shape}" + (f"  {', '.join(parts)}" if parts else "")


def to_json(document: Any) -> str:
    """Returns ``document`` as JSON; NaN and infinities, which JSON lacks, become null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(document), indent=2, ensure_ascii=False)


def output_files(names: Sequence[str], folder: Path, *, force: bool) -> dict[str, Path]:
    """Returns the .npy file of each output; characters that a file name cannot have become ``_``.

    Raises:
        InputError: a file exists and ``force`` is off, or two outputs would share one.
    """
    files = {name: folder / (re.sub(r"[^\w.+-]", "_", name) + ".npy") for name in names}
    if len(set(files.values())) < len(files):
        raise InputError(f"{folder}: outputs {', '.join(names)} would share a file")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not a folder")
    for file in files.values():
        if file.exists() and not force:
            raise InputError(f"{file}: exists, pass --force to overwrite it")
    return files


def save(arrays: Mapping[str, Array], files: Mapping[str, Path]) -> None:
    """Writes each array to its file: all of them or, if writing fails, none.

    Strings are saved as NumPy's fixed-width ones and bfloat16, which .npy lacks, as float32.

    Raises:
        InputError: a file cannot be written.
    """
    folder = next(iter(files.values())).parent
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".rocline-", dir=folder) as staging:
            for name, file in files.items():
                array = arrays[name]
                if array.dtype.kind == "O":
                    array = array.astype(str)
                elif array.dtype.kind == "V":
                    array = array.astype(np.float32)
                np.save(Path(staging) / file.name, array, allow_pickle=False)
            for file in files.values():
                os.replace(Path(staging) / file.name, file)  # noqa: PTH105
    except OSError as error:
        for path in created:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
