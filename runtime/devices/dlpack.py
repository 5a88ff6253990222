"""DLPack in and out of buffers, without copies and without NumPy, which lacks bfloat16 and device memory.

The layout is dlpack.h's, versions 0.8 (legacy capsules) and 1.0 (versioned ones); the Python protocol with its stream
numbers is the Python array API standard's, 2023.12 (``__dlpack__``, ``__dlpack_device__``, ``from_dlpack``).
"""

import contextlib
import ctypes
import math
import sys
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rocline.errors import DeviceError
from rocline.runtime.devices.dtypes import BFLOAT16, DType

if TYPE_CHECKING:
    from rocline.runtime.devices.buffer import Buffer
    from rocline.runtime.devices.device import Device
    from rocline.runtime.devices.storage import Storage
    from rocline.runtime.devices.streams import Stream

DEVICE_NAMES = {1: "kDLCPU", 2: "kDLCUDA", 3: "kDLCUDAHost", 10: "kDLROCM", 11: "kDLROCMHost", 13: "kDLCUDAManaged"}
"""Names of DLDeviceType's numbers."""

_CPU, _CUDA, _ROCM = 1, 2, 10
# The protocol's stream numbers: the one for the null stream, those that are not allowed, and what to say then.
_NULL_STREAM = {_CUDA: 1, _ROCM: 0}
_NO_STREAM = {_CUDA: (0,), _ROCM: (1, 2)}
_STREAMS = {_CPU: "None", _CUDA: "None, -1, 1 or a handle", _ROCM: "None, -1, 0 or a handle"}
_READ_ONLY, _IS_COPIED = 1, 2
_VERSION = (1, 0)
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


def export(
    buffer: "Buffer",
    stream: int | None,
    max_version: tuple[int, int] | None,
    dl_device: tuple[int, int] | None,
    copy: bool | None,
) -> Any:
    """Returns a capsule; see `Buffer.__dlpack__`."""
    own = buffer.__dlpack_device__()
    wanted = own if dl_device is None else (int(dl_device[0]), int(dl_device[1]))
    flags = 0
    if wanted != own:
        if wanted[0] != _CPU:
            raise BufferError(f"{buffer}: cannot be exported to {_device_name(wanted)}, only as it is or to the host")
        if copy is False:
            raise BufferError(f"{buffer}: cannot be exported to {_device_name(wanted)} without a copy")
        exported, flags = _host().wrap(buffer.numpy()), _IS_COPIED
    else:
        consumer = consumer_stream(buffer.device, stream)
        if copy:
            exported, flags = _copied(buffer, consumer), _IS_COPIED
        else:
            exported = buffer
        if consumer is None:
            exported.storage.strangers |= stream is not None
        else:
            exported.use(consumer, write=not exported.read_only)
    if exported.read_only:
        flags |= _READ_ONLY
    try:
        return _capsule(exported, flags, versioned=max_version is not None and max_version[0] >= _VERSION[0])
    finally:
        if exported is not buffer:
            exported.close()


def consumer_stream(device: "Device", number: int | None) -> "Stream | None":
    """Returns the stream that a DLPack consumer means by ``number``; None where nothing is to be ordered.

    CUDA: None and 1 are the legacy default stream, 0 is not allowed. ROCm: None and 0 are the null stream, 1 and 2 are
    not allowed. Both: -1 wants no ordering. The host: None or -1.

    Raises:
        DeviceError: the number means nothing on this device, or is CUDA's 2, the thread's own default stream.
    """
    kind = device.driver.dlpack_type
    if number == -1 or (number is None and kind == _CPU):
        return None
    if number is None:
        return device.foreign_stream(_NULL_STREAM[kind])
    if kind != _CPU and number >= 0 and number not in _NO_STREAM[kind]:
        return device.foreign_stream(number)
    raise DeviceError(f"__dlpack__: stream {number} means nothing on {DEVICE_NAMES[kind]}, expected {_STREAMS[kind]}")


def producer_number(stream: "Stream") -> int | None:
    """Returns the number by which a DLPack producer knows ``stream``."""
    kind = stream.device.driver.dlpack_type
    if kind == _CPU:
        return None
    return stream.handle or _NULL_STREAM[kind]


def take(device: "Device", producer: Any, stream: "Stream") -> "Buffer":
    """Returns a buffer on the memory of a DLPack producer; see `Device.from_dlpack`."""
    own = (device.driver.dlpack_type, device.device_id)
    kind = type(producer).__name__
    if not hasattr(producer, "__dlpack__") or not hasattr(producer, "__dlpack_device__"):
        raise DeviceError(f"from_dlpack: {kind}, expected a tensor with __dlpack__ and __dlpack_device__")
    try:
        theirs = tuple(map(int, producer.__dlpack_device__()))
        if theirs != own:
            raise DeviceError(f"from_dlpack: {kind} on {_device_name(theirs)}, {device} takes {_device_name(own)}")
        if misfit := device.misfit(stream):
            raise DeviceError(f"from_dlpack on {device}: {stream} is {misfit}")
        with device.driver.on(device.device_id):
            # PyTorch gives nothing of a device that is not the current one.
            capsule = _ask(producer, producer_number(stream))
    except (BufferError, ValueError, RuntimeError) as error:
        raise DeviceError(f"from_dlpack: {kind} gives nothing: {error}") from error
    return _taken(device, capsule, stream)


def _ask(producer: Any, number: int | None) -> Any:
    try:
        return producer.__dlpack__(stream=number, max_version=_VERSION)
    except TypeError:
        # A producer from before DLPack 1.0 does not know the keyword.
        return producer.__dlpack__(stream=number)


def _taken(device: "Device", capsule: Any, stream: "Stream") -> "Buffer":
    from rocline.runtime.devices.buffer import Buffer
    from rocline.runtime.devices.storage import Storage

    kind = next((kind for kind in (_Versioned, _Legacy) if _capsule_is(capsule, kind.name)), None)
    if kind is None:
        raise DeviceError(f"from_dlpack: {capsule!r} is no capsule that DLPack knows, or was taken already")
    managed = kind.from_address(_capsule_pointer(capsule, kind.name))
    read_only = False
    if isinstance(managed, _Versioned):
        if managed.major != _VERSION[0]:
            raise DeviceError(f"from_dlpack: DLPack {managed.major}.{managed.minor}, expected version {_VERSION[0]}")
        read_only = bool(managed.flags & _READ_ONLY)
    tensor = managed.tensor
    shape = tuple(tensor.shape[: tensor.ndim])
    dtype = _numpy_dtype(tensor.dtype)
    if tensor.strides and math.prod(shape):
        strides = tuple(tensor.strides[: tensor.ndim])
        if any(size != 1 and got != want for size, got, want in zip(shape, strides, _strides(shape), strict=True)):
            raise DeviceError(f"from_dlpack: strides {strides} of shape {shape}, expected a contiguous tensor")
    nbytes = math.prod(shape) * dtype.itemsize

    def release(storage: Storage) -> None:
        # The producer may hand the memory to others at once. It gets it back even where a wait fails.
        with contextlib.ExitStack() as last_first:
            if managed.deleter:
                last_first.callback(_Deleter(managed.deleter), ctypes.addressof(managed))
            if storage.strangers:
                last_first.callback(device.driver.synchronize_device, device.device_id)
            for used in storage.streams:
                if not used.closed:
                    last_first.callback(used.synchronize)

    pointer = (tensor.data or 0) + tensor.byte_offset
    storage = Storage(device, pointer, nbytes, stream, release, read_only=read_only)
    _capsule_rename(capsule, kind.used)
    return Buffer(storage, shape, dtype, stream)


def _capsule(buffer: "Buffer", flags: int, *, versioned: bool) -> Any:
    if flags & _READ_ONLY and not versioned:
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
    deleter = ctypes.cast(_DELETE, c_void_p).value
    managed = _Versioned(*_VERSION, None, deleter, flags, tensor) if versioned else _Legacy(tensor, None, deleter)
    address = ctypes.addressof(managed)
    buffer.storage.hold()
    _LENT[address] = managed, sizes, buffer.storage
    return _capsule_new(address, managed.name, ctypes.cast(_DROP, c_void_p))


@cache
def _host() -> "Device":
    from rocline.runtime.devices import open_device

    return open_device("cpu")


def _copied(buffer: "Buffer", consumer: "Stream | None") -> "Buffer":
    stream = consumer or buffer.latest
    made = buffer.device.allocate(buffer.shape, buffer.dtype, stream=stream)
    made.copy_from(buffer, stream=stream)
    if consumer is None:
        # A consumer that wants no order takes the contents to be there.
        stream.synchronize()
    return made


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


def _device_name(device: Sequence[int]) -> str:
    return f"{DEVICE_NAMES.get(device[0], f'device type {device[0]}')}:{device[1]}"
