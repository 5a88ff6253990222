"""DLPack in and out of buffers: the Python protocol, with its stream numbers.

It is the Python array API standard's, 2023.12 (``__dlpack__``, ``__dlpack_device__``, ``from_dlpack``).
"""

import contextlib
import math
from functools import cache
from typing import TYPE_CHECKING, Any

from rocline.errors import DeviceError
from rocline.runtime.devices import capsules
from rocline.runtime.devices.capsules import DEVICE_NAMES, IS_COPIED, READ_ONLY, VERSION, device_name

if TYPE_CHECKING:
    from rocline.runtime.devices.buffer import Buffer
    from rocline.runtime.devices.device import Device
    from rocline.runtime.devices.streams import Stream

_CPU, _CUDA, _ROCM = 1, 2, 10
# The protocol's stream numbers: the one for the null stream, those that are not allowed, and what to say then.
_NULL_STREAM = {_CUDA: 1, _ROCM: 0}
_NO_STREAM = {_CUDA: (0,), _ROCM: (1, 2)}
_STREAMS = {_CPU: "None", _CUDA: "None, -1, 1 or a handle", _ROCM: "None, -1, 0 or a handle"}


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
            raise BufferError(f"{buffer}: cannot be exported to {device_name(wanted)}, only as it is or to the host")
        if copy is False:
            raise BufferError(f"{buffer}: cannot be exported to {device_name(wanted)} without a copy")
        exported, flags = _host().wrap(buffer.numpy()), IS_COPIED
    else:
        consumer = consumer_stream(buffer.device, stream)
        if copy:
            exported, flags = _copied(buffer, consumer), IS_COPIED
        else:
            exported = buffer
        if consumer is None:
            exported.storage.strangers |= stream is not None
        else:
            exported.use(consumer, write=not exported.read_only)
    if exported.read_only:
        flags |= READ_ONLY
    try:
        return capsules.lend(exported, flags, versioned=max_version is not None and max_version[0] >= VERSION[0])
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
            raise DeviceError(f"from_dlpack: {kind} on {device_name(theirs)}, {device} takes {device_name(own)}")
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
        return producer.__dlpack__(stream=number, max_version=VERSION)
    except TypeError:
        # A producer from before DLPack 1.0 does not know the keyword.
        return producer.__dlpack__(stream=number)


def _taken(device: "Device", capsule: Any, stream: "Stream") -> "Buffer":
    from rocline.runtime.devices.buffer import Buffer
    from rocline.runtime.devices.storage import Storage

    taken = capsules.take(capsule, (device.driver.dlpack_type, device.device_id))

    def release(storage: Storage) -> None:
        # The producer may hand the memory to others at once. It gets it back even where a wait fails.
        with contextlib.ExitStack() as last_first:
            last_first.callback(taken.delete)
            if storage.strangers:
                last_first.callback(device.driver.synchronize_device, device.device_id)
            # Held so that none is closed in between.
            last_first.enter_context(device.driver.lock)
            for used in storage.streams:
                if not used.closed:
                    last_first.callback(used.synchronize)

    nbytes = math.prod(taken.shape) * taken.dtype.itemsize
    storage = Storage(device, taken.pointer, nbytes, stream, release, read_only=taken.read_only)
    return Buffer(storage, taken.shape, taken.dtype, stream)


@cache
def _host() -> "Device":
    from rocline.runtime.devices import open_device

    return open_device("cpu")


def _copied(buffer: "Buffer", consumer: "Stream | None") -> "Buffer":
    if consumer is None:
        # Who wants no order takes the contents to be there: closing the stream waits for them.
        with buffer.device.create_stream() as stream:
            return _copied(buffer, stream)
    made = buffer.device.allocate(buffer.shape, buffer.dtype, stream=consumer)
    made.copy_from(buffer, stream=consumer)
    return made
