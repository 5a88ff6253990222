"""Devices, streams, events and buffers: one interface for AMD GPUs (HIP), NVIDIA GPUs (CUDA) and the host."""

import os
import threading
from functools import cache

from rocline.errors import DeviceError
from rocline.runtime.devices.buffer import Buffer
from rocline.runtime.devices.device import Device, MemoryInfo
from rocline.runtime.devices.driver import Driver
from rocline.runtime.devices.host_copy import HostCopy
from rocline.runtime.devices.pool import Statistics
from rocline.runtime.devices.streams import Event, Stream

__all__ = ["Buffer", "Device", "Event", "HostCopy", "MemoryInfo", "Statistics", "Stream", "open_device"]

KINDS = ("hip", "cuda", "cpu")
"""The kinds of devices."""


def open_device(kind: str, device_id: int = 0, *, limit: int | None = None) -> Device:
    """Returns a device.

    Args:
        kind: ``hip``, ``cuda`` or ``cpu``.
        device_id: which one, from 0.
        limit: the most bytes that its pool may hold; None for no limit.

    Raises:
        DeviceError: the runtime is not installed, not the one that ONNX Runtime uses, or has no such device.
    """
    return Device(driver(kind), device_id, limit=limit)


def driver(kind: str) -> Driver:
    """Returns the process's driver of ``kind``, loading its runtime at the first call.

    Raises:
        DeviceError: ``kind`` is unknown, or its runtime cannot be used, or there are two of it in the process.
    """
    with _LOADING:
        made = _load(kind)
    made.check()
    return made


_LOADING = threading.Lock()


@cache
def _load(kind: str) -> Driver:
    made = _new(kind)
    os.register_at_fork(after_in_child=made.forked)
    return made


def _new(kind: str) -> Driver:
    if kind == "cpu":
        from rocline.runtime.devices.host import HostDriver

        return HostDriver()
    if kind == "hip":
        from rocline.runtime.devices.hip import HipDriver

        return HipDriver()
    if kind == "cuda":
        from rocline.runtime.devices.cuda import CudaDriver

        return CudaDriver()
    raise DeviceError(f"device {kind!r}: unknown, expected one of {', '.join(KINDS)}")
