"""What an .onnx file says about itself, read without loading its weights and without importing onnx.

A protobuf message is a row of (field number, wire type, payload); a payload that is of no interest is skipped by its
length, so a file of many gigabytes costs no more than its graph. Field numbers: onnx.proto, which
only ever adds to them.
"""

import math
import mmap
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rocline.errors import ModelError
from rocline.runtime.manifest import TensorSpec

UNKNOWN = "?"
"""Stands in a shape for a dimension that the model neither sizes nor names; two of them are not tied."""

ANY_RANK = ("...",)
"""The shape of a tensor whose rank the model leaves open."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BFLOAT16 = 16

# TensorProto.DataType: name as in NumPy or ml_dtypes, and bits an element (None: no fixed size).
_DTYPES: dict[int, tuple[str, int | None]] = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    8: ("string", None),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    14: ("complex64", 64),
    15: ("complex128", 128),
    _BFLOAT16: ("bfloat16", 16),
    17: ("float8_e4m3fn", 8),
    18: ("float8_e4m3fnuz", 8),
    19: ("float8_e5m2", 8),
    20: ("float8_e5m2fnuz", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
    23: ("float4_e2m1fn", 4),
}


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose bytes lie in another file.

    Attributes:
        name: the tensor's name.
        location: path of the file as the model gives it, relative to the model's folder.
        offset: first byte of the tensor in that file.
        length: bytes as the model gives them, or None.
        size: bytes that dtype and dims ask for, or None where the dtype has no fixed size.
    """

    name: str
    location: str
    offset: int
    length: int | None
    size: int | None


@dataclass
class OnnxFile:
    """The outline of an ONNX model.

    Attributes:
        ir_version: version of the file format.
        producer: name and version of what wrote the file.
        opsets: opset version by domain; the standard domain is ``ai.onnx``.
        inputs: graph inputs that are not initializers.
        outputs: graph outputs.
        constants: names of the outputs that no input's values reach: initializers, and what may be folded to one.
        operators: node count by operator, subgraphs and functions included; other domains than the standard one are
            written ``domain::Op``.
        external: tensors kept in other files.
        weight_bytes: bytes of all initializers, by dtype.
        bfloat16: whether a tensor, a value or a Cast of the graph is bfloat16.
    """

    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    constants: tuple[str, ...] = ()
    operators: Counter[str] = field(default_factory=Counter)
    external: list[ExternalTensor] = field(default_factory=list)
    weight_bytes: Counter[str] = field(default_factory=Counter)
    bfloat16: bool = False


def read(path: Path) -> OnnxFile:
    """Reads the outline of ``path``.

    Raises:
        ModelError: the file is missing, empty, truncated or not an ONNX model.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{path}: the file is empty, expected an ONNX model")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data).model()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file, expected an ONNX model") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except (_WireError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: truncated, damaged or not an ONNX model ({error})") from None


def check_external(path: Path, model: OnnxFile) -> None:
    """Checks that every tensor kept outside ``path`` is there in full, inside the model's folder.

    Raises:
        ModelError: names the tensor, the file and the bytes expected.
    """
    folder = path.parent
    inside = folder.resolve()
    sizes: dict[str, int] = {}
    for tensor in model.external:
        where = f"{path}: tensor '{tensor.name}': external data '{tensor.location}'"
        if tensor.location not in sizes:
            target = (folder / tensor.location).resolve()
            if not tensor.location or not target.is_relative_to(inside) or target == inside:
                raise ModelError(f"{where} points outside the model's folder, expected a file in it")
            if not target.is_file():
                wanted = "" if tensor.size is None else f", expected a file with {tensor.size} bytes for it"
                raise ModelError(f"{where} is missing{wanted}")
            sizes[tensor.location] = target.stat().st_size
        length = tensor.size if tensor.length is None else tensor.length
        if length is None:
            continue
        if tensor.size is not None and length != tensor.size:
            raise ModelError(f"{where} is given as {length} bytes, expected {tensor.size} from its dtype and shape")
        if tensor.offset < 0 or tensor.offset + length > sizes[tensor.location]:
            raise ModelError(
                f"{where} has {sizes[tensor.location]} bytes, expected {length} bytes at offset {tensor.offset}"
            )


class _WireError(Exception):
    """The bytes are no protobuf message of this kind."""


class _Reader:
    """Walks the messages of one model; offsets are into the whole file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._outline = OnnxFile()
        # Names of the values that the node under way reads, in its subgraphs too.
        self._read: set[str] = set()

    def model(self) -> OnnxFile:
        outline = self._outline
        graph = None
        producer = ["", ""]
        for number, value, end in self._fields(0, len(self._data)):
            if number == 1:
                outline.ir_version = value
            elif number in (2, 3):
                producer[number - 2] = self._text(value, end)
            elif number == 7:
                graph = (value, end)
            elif number == 8:
                self._opset(value, end)
            elif number == 25:
                self._function(value, end)
        if graph is None or not outline.opsets:
            raise _WireError("no graph" if graph is None else "no opset")
        outline.producer = " ".join(filter(None, producer))
        self._graph(*graph, top=True)
        return outline

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yields (field number, value, 0) for a varint and (field number, start, end) for a payload of bytes."""
        data = self._data
        while at < end:
            key = data[at]
            at += 1
            if key > 127:
                key, at = self._varint(at - 1, end)
            wire = key & 7
            if wire == _BYTES:
                length, at = self._varint(at, end)
                stop = at + length
                if stop > end:
                    raise _WireError(f"a field of {length} bytes at byte {at} passes the end at byte {end}")
                yield key >> 3, at, stop
                at = stop
            elif wire == _VARINT:
                value, at = self._varint(at, end)
                yield key >> 3, value, 0
            elif wire in (_FIXED32, _FIXED64):
                at += 4 if wire == _FIXED32 else 8
                if at > end:
                    raise _WireError(f"a number passes the end at byte {end}")
            else:
                raise _WireError(f"unknown wire type {wire} at byte {at - 1}")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        data = self._data
        value = shift = 0
        while at < end and shift < 70:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
            shift += 7
        raise _WireError(f"a number at byte {at} has no end")

    def _text(self, start: int, end: int) -> str:
        return self._data[start:end].decode("utf-8")

    def _opset(self, start: int, end: int) -> None:
        domain, version = "", 0
        for number, value, stop in self._fields(start, end):
            if number == 1:
                domain = self._text(value, stop)
            elif number == 2:
                version = value
        self._outline.opsets[domain or "ai.onnx"] = version

    def _function(self, start: int, end: int) -> None:
        for number, value, stop in self._fields(start, end):
            if number == 7:
                self._node(value, stop)

    def _graph(self, start: int, end: int, top: bool = False) -> None:
        inputs: list[tuple[int, int]] = []
        outputs: list[tuple[int, int]] = []
        initializers: set[str] = set()
        nodes: list[tuple[set[str], list[str]]] = []
        for number, value, stop in self._fields(start, end):
            if number == 1:
                if top:
                    self._read = set()
                nodes.append((self._read, self._node(value, stop)))
            elif number == 5:
                initializers.add(self._tensor(value, stop))
            elif number == 15:
                for part, part_start, part_end in self._fields(value, stop):
                    if part in (1, 2):
                        initializers.add(self._tensor(part_start, part_end))
            elif number == 11:
                inputs.append((value, stop))
            elif number == 12:
                outputs.append((value, stop))
        if top:
            specs = [self._value_info(*span) for span in inputs]
            self._outline.inputs = tuple(spec for spec in specs if spec.name not in initializers)
            self._outline.outputs = tuple(self._value_info(*span) for span in outputs)
            reached = {spec.name for spec in self._outline.inputs}
            for read, written in nodes:
                if not reached.isdisjoint(read):
                    # An input or output that is left out has no name.
                    reached.update(name for name in written if name)
            self._outline.constants = tuple(spec.name for spec in self._outline.outputs if spec.name not in reached)
            if any(spec.dtype == "bfloat16" for spec in (*specs, *self._outline.outputs)):
                self._outline.bfloat16 = True

    def _node(self, start: int, end: int) -> list[str]:
        """Returns the values that it gives and that its inputs' values reach; a shape depends on no values."""
        operator = domain = ""
        written: list[str] = []
        for number, value, stop in self._fields(start, end):
            if number == 1:
                self._read.add(self._text(value, stop))
            elif number == 2:
                written.append(self._text(value, stop))
            elif number == 4:
                operator = self._text(value, stop)
            elif number == 7:
                domain = self._text(value, stop)
            elif number == 5:
                self._attribute(value, stop)
        if not operator:
            raise _WireError(f"the node at byte {start} has no operator")
        standard = domain in ("", "ai.onnx")
        self._outline.operators[operator if standard else f"{domain}::{operator}"] += 1
        return [] if standard and operator in ("Shape", "Size") else written

    def _attribute(self, start: int, end: int) -> None:
        name, whole = "", 0
        for number, value, stop in self._fields(start, end):
            if number == 1:
                name = self._text(value, stop)
            elif number == 3:
                whole = value
            elif number in (5, 10):
                self._tensor(value, stop)
            elif number in (6, 11):
                self._graph(value, stop)
        if whole == _BFLOAT16 and name in ("to", "dtype"):
            self._outline.bfloat16 = True

    def _tensor(self, start: int, end: int) -> str:
        name, dtype, external = "", 0, False
        dims: list[int] = []
        entries: dict[str, str] = {}
        for number, value, stop in self._fields(start, end):
            if number == 1:
                dims.extend(self._packed(value, stop) if stop else [value])
            elif number == 2:
                dtype = value
            elif number == 8:
                name = self._text(value, stop)
            elif number == 13:
                entries.update([self._entry(value, stop)])
            elif number == 14:
                external = value == 1
        dtype_name, bits = _DTYPES.get(dtype, (f"dtype {dtype}", None))
        size = None if bits is None else math.ceil(math.prod(dims) * bits / 8)
        self._outline.weight_bytes[dtype_name] += size or 0
        if dtype == _BFLOAT16:
            self._outline.bfloat16 = True
        if external:
            offset, length = (entries.get(key, "") for key in ("offset", "length"))
            for key, text in (("offset", offset), ("length", length)):
                if text and not text.isdecimal():
                    raise _WireError(f"tensor '{name}': {key} of its external data is {text!r}, expected a number")
            self._outline.external.append(
                ExternalTensor(
                    name, entries.get("location", ""), int(offset or 0), int(length) if length else None, size
                )
            )
        return name

    def _packed(self, start: int, end: int) -> Iterator[int]:
        while start < end:
            value, start = self._varint(start, end)
            yield value

    def _entry(self, start: int, end: int) -> tuple[str, str]:
        parts = {number: self._text(value, stop) for number, value, stop in self._fields(start, end) if stop}
        return parts.get(1, ""), parts.get(2, "")

    def _value_info(self, start: int, end: int) -> TensorSpec:
        name, dtype = "", "not a tensor"
        shape: tuple[int | str, ...] = ()
        for number, value, stop in self._fields(start, end):
            if number == 1:
                name = self._text(value, stop)
            elif number == 2:
                for kind, kind_start, kind_end in self._fields(value, stop):
                    if kind == 1:
                        dtype, shape = self._tensor_type(kind_start, kind_end)
        return TensorSpec(name, dtype, shape)

    def _tensor_type(self, start: int, end: int) -> tuple[str, tuple[int | str, ...]]:
        dtype = ""
        shape: tuple[int | str, ...] = ANY_RANK
        for number, value, stop in self._fields(start, end):
            if number == 1:
                dtype = _DTYPES.get(value, (f"dtype {value}", None))[0]
            elif number == 2:
                shape = tuple(self._dimension(*span) for part, *span in self._fields(value, stop) if part == 1)
        return dtype, shape

    def _dimension(self, start: int, end: int) -> int | str:
        for number, value, stop in self._fields(start, end):
            if number == 1:
                return value if value < 1 << 63 else UNKNOWN
            if number == 2:
                return self._text(value, stop) or UNKNOWN
        return UNKNOWN
