"""``rocline.json``: what a model folder holds, where it came from, and how closely it was seen to follow its source.

`rocline.export` writes it; the runtime reads nothing else about a model. Every field is checked when it is read, so a
manifest that was edited by hand or written by a later rocline ends in one clear line.
"""

import dataclasses
import hashlib
import json
import types
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from rocline.errors import ModelError

MANIFEST_NAME = "rocline.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: the ONNX value's name.
        dtype: NumPy's name (``float32``, ``int64``, ...), or ``bfloat16``, or ``string``.
        shape: one entry a dimension: its size, or the name of the symbol that stands for it.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Source:
    """Where the weights came from: ``kind`` is one of recipe package, folder, gguf, hub, onnx, random."""

    kind: str
    name: str
    revision: str | None
    licence: str | None


@dataclass(frozen=True)
class OnnxModel:
    """One ONNX file of the folder: its interface and what a runtime must support to load it."""

    ir_version: int
    opsets: dict[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Parity:
    """How far one output was from the reference at export, over real-looking inputs.

    Attributes:
        model: name of the ONNX file.
        output: name of the output.
        max_abs: largest absolute difference.
        mean_abs: mean absolute difference.
        bound: the largest ``max_abs`` that this export accepted.
        against: the reference, e.g. ``torch 2.13.0 float32``.
        inputs: what was fed, e.g. ``3 sentences through the model's tokenizer``.
    """

    model: str
    output: str
    max_abs: float
    mean_abs: float
    bound: float
    against: str
    inputs: str


@dataclass(frozen=True)
class CustomOps:
    """The custom-operator domain the model uses, and its version."""

    domain: str
    version: int


@dataclass(frozen=True)
class FusionRow:
    """What one rule did to one ONNX file.

    Attributes:
        rule: the rule's name.
        made: what it puts into the graph, e.g. ``CachedAttention``.
        count: how often it did.
        refused: how often it found its place and left it alone, by reason.
    """

    rule: str
    made: str
    count: int
    refused: dict[str, int]


@dataclass(frozen=True)
class Fusion:
    """How one ONNX file was made to fit its target, and where its nodes are expected to run there.

    Attributes:
        rows: one entry a rule that found anything.
        nodes_before: nodes of the traced graph, subgraphs included.
        nodes_after: nodes of the file.
        placement: provider -> operator -> nodes that it is expected to run: predicted from the target's kernels, not
            observed. Operators of a domain are written ``domain::Operator``.
        shapes: operator -> nodes that only compute shapes, which ONNX Runtime runs on the CPU on purpose.
    """

    rows: tuple[FusionRow, ...]
    nodes_before: int
    nodes_after: int
    placement: dict[str, dict[str, int]]
    shapes: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    """The whole of ``rocline.json``.

    Attributes:
        task: Hugging Face task name, e.g. ``text-generation``.
        dtype: ``fp32``, ``fp16`` or ``bf16``: the dtype of weights and activations.
        target: the runtime the graph was made for: ``rocm``, ``migraphx``, ``cuda``, ``cpu`` or ``portable``.
        cache: layout of the KV cache: ``none``, ``growing`` or ``static``.
        models: the ONNX files by name; a decoder-only model or an encoder has one, ``model.onnx``.
        custom_ops: the custom-operator domain that the graphs use, if any.
        tools: versions of what made the folder, by package name.
        files: SHA-256 of each file of the folder but this one, by relative POSIX path.
        parity: one entry an output that was compared; empty where there was nothing to compare with.
        notes: what the export did that a user should know, one line each.
        fusion: by name of the ONNX file; empty in manifests of rocline versions that did not write it.
    """

    source: Source
    task: str
    dtype: str
    target: str
    cache: str
    models: dict[str, OnnxModel]
    custom_ops: CustomOps | None
    tools: dict[str, str]
    files: dict[str, str]
    parity: tuple[Parity, ...]
    notes: tuple[str, ...] = ()
    fusion: dict[str, Fusion] = dataclasses.field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Reads and checks ``folder/rocline.json``.

        Raises:
            ModelError: the file is missing, not JSON, of a later format version, or a field is missing, unknown, of
                the wrong type, or names a file outside the folder.
        """
        path = folder / MANIFEST_NAME
        try:
            document = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise ModelError(f"{folder}: no {MANIFEST_NAME}; expected a folder that 'rocline export' wrote") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ModelError(f"{path}: not readable as JSON: {error}") from None
        version = document.get("format_version") if isinstance(document, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ModelError(
                f"{path}: format_version is {version}, this rocline reads up to {FORMAT_VERSION}: upgrade rocline"
            )
        try:
            manifest = _parse(cls, document, "")
        except _FieldError as error:
            raise ModelError(f"{path}: {error}") from None
        for name in (*manifest.files, *manifest.models):
            relative = PurePosixPath(name)
            if relative.is_absolute() or ".." in relative.parts:
                raise ModelError(f"{path}: file {name!r} points outside the model folder")
        if not manifest.models:
            raise ModelError(f"{path}: field 'models' is empty, expected at least one ONNX file")
        return manifest

    def write(self, folder: Path) -> None:
        """Writes ``folder/rocline.json``: keys in the order of the fields, UTF-8, two spaces."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (folder / MANIFEST_NAME).write_text(text + "\n", "utf-8")

    def verify(self, folder: Path) -> None:
        """Compares the SHA-256 of every file that the manifest lists.

        Raises:
            ModelError: a file is missing or its hash does not match.
        """
        for name, expected in self.files.items():
            path = folder / name
            if not path.is_file():
                raise ModelError(f"{path}: missing, but listed in {MANIFEST_NAME}")
            actual = sha256(path)
            if actual != expected:
                raise ModelError(f"{path}: SHA-256 is {actual}, expected {expected} from {MANIFEST_NAME}")


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below ``folder`` but the manifest, by relative POSIX path, sorted."""
    files: Iterable[Path] = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files if path.name != MANIFEST_NAME}


class _FieldError(Exception):
    """A field of the document does not fit the dataclass."""


_T = TypeVar("_T")


def _parse(cls: type[_T], document: Any, where: str) -> _T:
    """Builds a dataclass from parsed JSON, checking every field's presence and type."""
    if not isinstance(document, dict):
        what = f"field '{where}'" if where else "the document"
        raise _FieldError(f"{what} is {_kind(document)}, expected an object")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    prefix = f"{where}." if where else ""
    for name in document:
        if name not in fields:
            raise _FieldError(f"unknown field '{prefix}{name}'")
    values = {}
    for name, field in fields.items():
        if name in document:
            values[name] = _value(hints[name], document[name], prefix + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise _FieldError(f"field '{prefix}{name}' is missing")
    return cls(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for option in args:
            if option not in (int, str, type(None)) or (isinstance(value, option) and not isinstance(value, bool)):
                return _value(option, value, where)
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_value(args[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    elif origin is dict:
        if isinstance(value, dict):
            return {key: _value(args[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    elif dataclasses.is_dataclass(hint):
        return _parse(hint, value, where)  # type: ignore[arg-type]
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, hint) and not isinstance(value, bool):
        return value
    raise _FieldError(f"field '{where}' is {_kind(value)}, expected {_expected(hint)}")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _expected(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_expected(option) for option in args)
    if origin is dict:
        return "an object"
    if origin is tuple:
        return "a list"
    return {str: "a string", int: "a whole number", float: "a number", type(None): "null"}.get(hint, "an object")
