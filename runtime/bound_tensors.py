"""What may be bound to a model's inputs and outputs: shapes and dtypes, buffers of the binding's own, and overlaps."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rocline.errors import InputError
from rocline.runtime.devices import Buffer
from rocline.runtime.inputs import numpy_dtype
from rocline.runtime.manifest import TensorSpec
from rocline.runtime.onnx_file import ANY_RANK, UNKNOWN
from rocline.runtime.startup import Lane

_ELEMENT = bytes(16)
AUTOMATIC = object()
"""An output that is allocated once where its shape follows from the inputs', and else by ONNX Runtime at each run."""


def in_buffers(specs: Iterable[TensorSpec]) -> bool:
    """Returns whether all these tensors can be in buffers; strings, sequences and maps cannot."""
    return all((dtype := numpy_dtype(spec.dtype)) is not None and dtype.kind != "O" for spec in specs)


def buffer_dtype(spec: TensorSpec) -> "np.dtype[Any]":
    """Returns the dtype of a tensor in a buffer.

    Raises:
        InputError: strings, sequences and maps cannot be in one.
    """
    dtype = numpy_dtype(spec.dtype)
    if dtype is None or dtype.kind == "O":
        raise InputError(f"'{spec.name}': {spec.dtype} cannot be held in a buffer, only run() takes and gives it")
    return dtype


def stand_in(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> "np.ndarray[Any, Any]":
    """Returns an array of one element's memory that has this shape and dtype: what checks of inputs look at."""
    return np.ndarray(shape, dtype, _ELEMENT, strides=(0,) * len(shape))


def infer_shape(
    spec: TensorSpec, inputs: Mapping[str, TensorSpec], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...] | None:
    """Returns an output's shape if every dimension is fixed or a symbol to which the inputs' shapes give a size."""
    if spec.shape == ANY_RANK:
        return None
    sizes: dict[int | str, int] = {}
    for name, shape in shapes.items():
        declared = inputs[name].shape
        if declared != ANY_RANK:
            sizes.update(zip(declared, shape, strict=True))
    sizes.pop(UNKNOWN, None)
    found = [dimension if isinstance(dimension, int) else sizes.get(dimension) for dimension in spec.shape]
    return None if None in found else tuple(size for size in found if size is not None)


def wanted_outputs(
    known: Mapping[str, TensorSpec], outputs: Mapping[str, Any] | Sequence[str] | None
) -> dict[str, Any]:
    """Returns what is wanted of each output by name, as `Session.bind` takes it, or `AUTOMATIC`.

    Raises:
        InputError: an output is unknown, or none is wanted.
    """
    if isinstance(outputs, str) or (outputs is not None and not outputs):
        raise InputError(f"outputs: {outputs!r}, expected names out of {', '.join(known)}, or buffers by name")
    wanted = dict(outputs) if isinstance(outputs, Mapping) else dict.fromkeys(outputs or known, AUTOMATIC)
    for name in wanted:
        if name not in known:
            raise InputError(f"output '{name}': unknown, the model gives {', '.join(known)}")
    return wanted


def own_buffer(where: str, spec: TensorSpec, value: Any, lane: Lane) -> Buffer:
    """Returns a buffer of the binding's own on the lane's device: a new one, or on the memory of ``value``.

    Args:
        where: what it is for, for messages.
        spec: what the model says of it.
        value: a `Buffer`, something with ``__dlpack__``, or a shape.
        lane: the device and the stream.

    Raises:
        InputError: ``value`` is none of these, or a buffer elsewhere.
        DeviceError: it cannot be taken without a copy, is closed, or there is not enough memory.
    """
    dtype = buffer_dtype(spec)
    if isinstance(value, Buffer):
        if not value.device.same_as(lane.device):
            raise InputError(f"{where}: {value}, expected a buffer on {lane.device}")
        return value.view(value.shape)
    if hasattr(value, "__dlpack__"):
        return lane.device.from_dlpack(value, stream=lane.stream)
    if isinstance(value, (tuple, list)):
        return lane.device.allocate(value, dtype, stream=lane.stream)
    raise InputError(f"{where}: {value!r}, expected a buffer, a tensor with __dlpack__, or a shape")


def check_output(where: str, spec: TensorSpec, shape: tuple[int, ...] | None, buffer: Buffer) -> None:
    """Refuses a buffer in which an output does not fit; ``shape`` is the output's where it is known.

    Raises:
        InputError: dtype or shape differ, or it is read-only.
    """
    dtype = buffer_dtype(spec)
    declared = spec.shape if shape is None else shape
    fits = declared == ANY_RANK or (
        len(declared) == len(buffer.shape)
        and all(not isinstance(want, int) or want == size for want, size in zip(declared, buffer.shape, strict=True))
    )
    if buffer.dtype != dtype or not fits:
        raise InputError(f"{where}: {buffer.dtype.name} {buffer.shape}, expected {dtype.name} {declared}")
    if buffer.read_only:
        raise InputError(f"{where}: {buffer} is read-only")


def check_overlaps(inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], passed: Collection[str]) -> None:
    """Refuses outputs that share memory with each other, or a part of theirs with an input.

    Those of ``passed``, which are copies of the input of that name made before the run, share none with another input.

    Raises:
        InputError: they do.
    """
    filled = [(name, buffer) for name, buffer in outputs.items() if buffer.nbytes]
    for index, (name, buffer) in enumerate(filled):
        for other, second in filled[:index]:
            if _overlap(buffer, second):
                raise InputError(f"outputs '{other}' and '{name}': bound to the same memory")
        for other, second in inputs.items():
            if name in passed and name != other and _overlap(buffer, second):
                raise InputError(f"output '{name}': is the input of that name, and shares memory with input '{other}'")
            same = buffer.pointer == second.pointer and buffer.nbytes == second.nbytes
            if not same and _overlap(buffer, second):
                raise InputError(
                    f"output '{name}': shares part of its memory with input '{other}', expected all or none"
                )


def _overlap(first: Buffer, second: Buffer) -> bool:
    if not first.device.same_as(second.device):
        return False
    return first.pointer < second.pointer + second.nbytes and second.pointer < first.pointer + first.nbytes


class Lent(Mapping[str, Buffer]):
    """A binding's inputs or outputs by name.

    Args:
        names: their names.
        get: gives one.
    """

    def __init__(self, names: Mapping[str, Any], get: Callable[[str], Buffer]) -> None:
        self._names, self._get = names, get

    def __getitem__(self, name: str) -> Buffer:
        return self._get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
