"""DLPack's capsules: the memory of a buffer lent to a consumer, and a producer's taken, by ctypes alone.

NumPy's own way in and out lacks bfloat16 and device memory. The layout is dlpack.h's, versions 0.8 (legacy capsules)
and 1.0 (versioned ones).
"""

import ctypes
import math
import sys
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rocline.errors import DeviceError
from rocline.runtime.devices.dtypes import BFLOAT16, DType

if TYPE_CHECKING:
    from rocline.runtime.devices.buffer import Buffer
    from rocline.runtime.devices.storage import Storage

VERSION = (1, 0)
"""The newest DLPack that is given and taken."""

READ_ONLY, IS_COPIED = 1, 2
"""Flags of a versioned capsule."""

DEVICE_NAMES = {1: "kDLCPU", 2: "kDLCUDA", 3: "kDLCUDAHost", 10: "kDLROCM", 11: "kDLROCMHost", 13: "kDLCUDAManaged"}
"""Names of DLDeviceType's numbers."""

# NumPy's kind: DLDataTypeCode
_CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_BFLOAT_CODE = 4


class _Device(ctypes.Structure):
    _fields_ = [("type", c_int32), ("id", c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device", _Device),
        ("ndim", c_int32),
        ("dtype", _DataType),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


_Deleter = ctypes.CFUNCTYPE(None, c_void_p)


class _Legacy(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", c_void_p), ("deleter", c_void_p)]
    name = b"dltensor"
    used = b"used_dltensor"


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("context", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _Tensor),
    ]
    name = b"dltensor_versioned"
    used = b"used_dltensor_versioned"


_Managed = _Legacy | _Versioned


def _python(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(ctypes.pythonapi, name)
    function.restype, function.argtypes = result, arguments
    return function


_capsule_new = _python("PyCapsule_New", ctypes.py_object, c_void_p, c_char_p, c_void_p)
_capsule_is = _python("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, c_char_p)
_capsule_pointer = _python("PyCapsule_GetPointer", c_void_p, ctypes.py_object, c_char_p)
_capsule_rename = _python("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, c_char_p)

# A dying capsule must not be touched as a Python object; so its destructor has these on its address.
_DEAD = ctypes.PyDLL(None)
_DEAD.PyCapsule_IsValid.argtypes, _DEAD.PyCapsule_IsValid.restype = (c_void_p, c_char_p), ctypes.c_int
_DEAD.PyCapsule_GetPointer.argtypes, _DEAD.PyCapsule_GetPointer.restype = (c_void_p, c_char_p), c_void_p

# What is lent out, by the address of its structure; the consumer's call of the deleter ends it.
_LENT: "dict[int, tuple[_Managed, Any, Storage]]" = {}


def _delete(address: int, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
    # When the interpreter ends, what this module refers to is gone before the last consumers are.
    if not finalizing():
        _LENT.pop(address)[2].let_go()


def _drop(capsule: int, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
    """Ends the loan of a capsule that nobody took; a consumer renames the one that it takes."""
    for kind in () if finalizing() else (_Versioned, _Legacy):
        if _DEAD.PyCapsule_IsValid(capsule, kind.name):
            _delete(_DEAD.PyCapsule_GetPointer(capsule, kind.name))


_DELETE, _DROP = _Deleter(_delete), ctypes.PYFUNCTYPE(None, c_void_p)(_drop)
# Consumers may call these until the very end of the process, when modules are gone.
for _callback in (_DELETE, _DROP):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_callback))

_DELETER, _DESTRUCTOR = ctypes.cast(_DELETE, c_void_p), ctypes.cast(_DROP, c_void_p)


def lend(buffer: "Buffer", flags: int, *, versioned: bool) -> Any:
    """Returns a capsule on a buffer's memory, which stays until the consumer, or the capsule, lets go of it.

    Raises:
        BufferError: it is read-only, which a consumer of DLPack before 1.0 cannot be told.
    """
    if flags & READ_ONLY and not versioned:
        raise BufferError(f"{buffer}: read-only, which a consumer of DLPack before 1.0 cannot be told")
    rank = len(buffer.shape)
    sizes = (c_int64 * (2 * rank or 1))(*buffer.shape, *_strides(buffer.shape))
    tensor = _Tensor(
        data=buffer.pointer,
        device=_Device(*buffer.__dlpack_device__()),
        ndim=rank,
        dtype=_data_type(buffer.dtype),
        shape=ctypes.cast(sizes, POINTER(c_int64)),
        strides=ctypes.cast(ctypes.byref(sizes, 8 * rank), POINTER(c_int64)),
    )
    deleter = _DELETER.value
    managed = _Versioned(*VERSION, None, deleter, flags, tensor) if versioned else _Legacy(tensor, None, deleter)
    address = ctypes.addressof(managed)
    # It is held already, by who exports it.
    buffer.storage.hold()
    _LENT[address] = managed, sizes, buffer.storage
    return _capsule_new(address, managed.name, _DESTRUCTOR)


@dataclass(frozen=True)
class Taken:
    """A tensor that a producer gave.

    Attributes:
        pointer: its address.
        shape: sizes of the axes.
        dtype: NumPy's dtype.
        read_only: whether it may not be written.
        delete: gives it back to its producer; to be called once.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: DType
    read_only: bool
    delete: Callable[[], None]


def take(capsule: Any, device: tuple[int, int]) -> Taken:
    """Takes the contiguous tensor in a capsule; where that is refused, the capsule stays as it was.

    Args:
        capsule: what a producer's ``__dlpack__`` gave.
        device: where the tensor has to be, by DLPack's numbers.

    Raises:
        DeviceError: the capsule was taken already, or is of another version; or the tensor is elsewhere, not
            contiguous, or of a data type that a buffer cannot have.
    """
    kind = next((kind for kind in (_Versioned, _Legacy) if _capsule_is(capsule, kind.name)), None)
    if kind is None:
        raise DeviceError(f"from_dlpack: {capsule!r} is no capsule that DLPack knows, or was taken already")
    managed = kind.from_address(_capsule_pointer(capsule, kind.name))
    read_only = False
    if isinstance(managed, _Versioned):
        if managed.major != VERSION[0]:
            raise DeviceError(f"from_dlpack: DLPack {managed.major}.{managed.minor}, expected version {VERSION[0]}")
        read_only = bool(managed.flags & READ_ONLY)
    tensor = managed.tensor
    there = (tensor.device.type, tensor.device.id)
    if there != device:
        raise DeviceError(f"from_dlpack: a capsule on {device_name(there)} of a producer on {device_name(device)}")
    shape = tuple(tensor.shape[: tensor.ndim])
    dtype = _numpy_dtype(tensor.dtype)
    if tensor.strides and math.prod(shape):
        strides = tuple(tensor.strides[: tensor.ndim])
        if any(size != 1 and got != want for size, got, want in zip(shape, strides, _strides(shape), strict=True)):
            raise DeviceError(f"from_dlpack: strides {strides} of shape {shape}, expected a contiguous tensor")
    address = ctypes.addressof(managed)

    def delete() -> None:
        if managed.deleter:
            _Deleter(managed.deleter)(address)

    _capsule_rename(capsule, kind.used)
    return Taken((tensor.data or 0) + tensor.byte_offset, shape, dtype, read_only, delete)


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the strides of a contiguous tensor, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _data_type(dtype: DType) -> _DataType:
    code = _BFLOAT_CODE if dtype == BFLOAT16 else _CODES[dtype.kind]
    return _DataType(code, 8 * dtype.itemsize, 1)


def _numpy_dtype(data: _DataType) -> DType:
    if data.lanes == 1:
        if (data.code, data.bits) == (_BFLOAT_CODE, 16):
            return BFLOAT16
        kind = next((kind for kind, code in _CODES.items() if code == data.code), None)
        if kind is not None and data.bits % 8 == 0:
            try:
                dtype: DType = np.dtype(f"{kind}{data.bits // 8}")
                return dtype
            except TypeError:
                pass
    raise DeviceError(f"from_dlpack: data type {data.code} of {data.bits} bits and {data.lanes} lanes is unknown here")


def device_name(device: Sequence[int]) -> str:
    """Returns DLPack's name of a device's type, and its number."""
    return f"{DEVICE_NAMES.get(device[0], f'device type {device[0]}')}:{device[1]}"
