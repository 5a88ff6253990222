"""Buffer: a tensor in a device's memory that knows which streams it was used on, so that no use of it can be a race."""

import contextlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from rocline.errors import DeviceError
from rocline.runtime.devices import dlpack
from rocline.runtime.devices.closing import Closing
from rocline.runtime.devices.driver import Direction
from rocline.runtime.devices.dtypes import DType, checked_dtype, checked_shape
from rocline.runtime.devices.host_copy import Array, HostCopy, host_bytes
from rocline.runtime.devices.staging import CHUNK
from rocline.runtime.devices.storage import Storage

if TYPE_CHECKING:
    from rocline.runtime.devices.device import Device
    from rocline.runtime.devices.streams import Stream


class Buffer(Closing):
    """A contiguous tensor in a device's memory.

    Every use names its stream. Uses on one stream are in that stream's order; where the stream changes, the buffer lets
    the new one wait, on the device, for what it must not overtake: a read for the last write, a write for all reads.
    Work that something else queues, as ONNX Runtime or a DLPack consumer does, is announced by `use` or ordered by
    `Stream.wait`.

    Args:
        storage: the memory; the buffer takes over a hold of it.
        shape, dtype, stream: the attributes.

    Attributes:
        device: where it is.
        stream: the stream it was allocated for.
        shape: sizes of the axes.
        dtype: NumPy's dtype; that of ml_dtypes for bfloat16.
        nbytes: its size in bytes.
    """

    def __init__(self, storage: Storage, shape: Sequence[int], dtype: DType, stream: "Stream") -> None:
        self.device, self.stream, self.shape, self.dtype = storage.device, stream, tuple(shape), dtype
        self.nbytes = math.prod(self.shape) * dtype.itemsize
        self.storage = storage
        self.closed = False
        self.device.close_with(self)

    def __repr__(self) -> str:
        return f"buffer {self.dtype.name} {self.shape} on {self.device}"

    @property
    def pointer(self) -> int:
        """The address, on the device."""
        self.check_open()
        return self.storage.pointer

    @property
    def latest(self) -> "Stream":
        """The stream of the last write, or the buffer's own if that is closed."""
        writer = self.storage.writer
        return self.stream if writer is None or writer.closed else writer

    @property
    def read_only(self) -> bool:
        """Whether it may not be written: its producer said so through DLPack."""
        return self.storage.read_only

    @property
    def array(self) -> Array:
        """The memory itself as a NumPy array, without a copy; it stays as long as the array does.

        Raises:
            DeviceError: the host cannot see the device's memory (see `numpy`), or the buffer is closed.
        """
        self._hold()
        if not self.device.driver.host_memory:
            self.storage.let_go()
            raise DeviceError(f"{self}: the host cannot see this memory; numpy() copies it")
        array: Array = np.asarray(_Held(self.storage, self.nbytes)).view(self.dtype).reshape(self.shape)
        if self.read_only:
            array.flags.writeable = False
        return array

    def use(self, stream: "Stream", *, write: bool = False) -> None:
        """Announces work on this buffer that something else queues on ``stream`` next.

        Lets ``stream`` wait for what that work must not overtake; costs no call of the runtime where the stream stays
        the same.

        Args:
            stream: where the work is queued.
            write: whether it may write.

        Raises:
            DeviceError: the buffer or ``stream`` is closed, on another device, or ``write`` to a read-only buffer. To a
                buffer of the host any stream will do, since what is done there is done at once.
        """
        self.check_open()
        if write and self.storage.read_only:
            raise DeviceError(f"{self}: read-only, its producer does not let it be written")
        if self.device.driver.host_memory and not stream.device.driver.host_memory:
            # Whatever a GPU's stream does with the host's memory goes through pinned memory of its own.
            return
        if misfit := self.device.misfit(stream):
            raise DeviceError(f"{self}: used on {stream}, which is {misfit}")
        self.storage.use(stream, write)

    def copy_from(self, source: "Buffer | Array", *, stream: "Stream") -> None:
        """Queues a copy of ``source``'s contents into this buffer on ``stream``.

        ``source`` is a buffer of this device or of the host, or a NumPy array; host memory is read before this
        returns, so it may be changed at once. Shapes may differ, dtype and size must not.

        Raises:
            DeviceError: dtype, size or device do not fit, or something is closed.
        """
        if isinstance(source, Buffer):
            self._check_fit("copy_from", source.dtype, source.shape, source.nbytes)
            if self.device.same_as(source.device):
                self._copy_on_device(source, stream)
                return
            if self.device.driver.host_memory:
                source.copy_to(self.array, stream=stream)
                return
            if not source.device.driver.host_memory:
                raise DeviceError(f"copy_from: {source}, expected a buffer on {self.device} or on the host")
            source = source.array
        self._check_fit("copy_from", source.dtype, source.shape, source.nbytes)
        if self.device.driver.host_memory:
            self.use(stream, write=True)
            np.copyto(self.array, source.reshape(self.shape))
        else:
            self._upload(np.ascontiguousarray(source).reshape(-1).view(np.uint8), stream)

    def copy_to(self, target: "Buffer | Array", *, stream: "Stream") -> None:
        """Copies the contents to ``target``: queued on ``stream`` for a buffer of this device, else waiting for it.

        Raises:
            DeviceError: dtype, size or device do not fit, ``target`` cannot be written, or something is closed.
        """
        if isinstance(target, Buffer):
            target.copy_from(self, stream=stream)
            return
        self._check_fit("copy_to", target.dtype, target.shape, target.nbytes)
        if not target.flags.writeable:
            raise DeviceError(f"copy_to: the array {target.dtype.name} {target.shape} is read-only")
        if self.nbytes > CHUNK and target.flags.c_contiguous:
            self._download(target, stream)
            return
        with self.fetch(stream=stream).arrived() as array:
            np.copyto(target, array.reshape(target.shape))

    def fill(self, byte: int, *, stream: "Stream") -> None:
        """Queues setting every byte to ``byte``, 0 to 255, on ``stream``."""
        if not 0 <= byte <= 255:
            raise DeviceError(f"fill: {byte}, expected a byte from 0 to 255")
        with stream.queueing(), self.held() as pointer:
            self.use(stream, write=True)
            self.device.driver.fill(pointer, byte, self.nbytes, stream.handle)

    def fetch(self, *, stream: "Stream | None" = None) -> "HostCopy":
        """Queues a copy to the host and returns at once; `HostCopy.numpy` waits for it.

        All of it is pinned meanwhile; `numpy` and `copy_to` pin long ones in pieces, which is quicker.

        Args:
            stream: where to queue it; `latest` if left out.
        """
        self.check_open()
        return HostCopy(self, stream or self.latest)

    def numpy(self, *, stream: "Stream | None" = None) -> Array:
        """Returns a copy of the contents as they are after all that ``stream`` has queued; waits for that.

        Args:
            stream: where to queue the copy; as for `fetch` if left out.
        """
        if self.device.driver.host_memory:
            return self.array.copy()
        if self.nbytes <= CHUNK:
            return self.fetch(stream=stream).numpy()
        made: Array = np.empty(self.shape, self.dtype)
        self._download(made, stream or self.latest)
        return made

    def view(self, shape: int | Sequence[int], dtype: Any = None) -> "Buffer":
        """Returns a buffer on the first bytes of the same memory, which lives until both are closed.

        Raises:
            DeviceError: that would be longer than this buffer.
        """
        self.check_open()
        made_dtype = self.dtype if dtype is None else checked_dtype(dtype)
        made_shape = checked_shape(shape)
        wanted = math.prod(made_shape) * made_dtype.itemsize
        if wanted > self.nbytes:
            raise DeviceError(f"view {made_dtype.name} {made_shape}: {wanted:,} bytes, {self} has {self.nbytes:,}")
        self._hold()
        return Buffer(self.storage, made_shape, made_dtype, self.stream)

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """Gives the address to a block during which the memory stays, whoever closes the buffer.

        Raises:
            DeviceError: the buffer is closed.
        """
        self._hold()
        try:
            yield self.storage.pointer
        finally:
            self.storage.let_go()

    def _hold(self) -> None:
        self.check_open()
        if not self.storage.hold():
            # Another thread closed it just now.
            raise DeviceError(f"{self}: closed")

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Returns a DLPack capsule on this memory, which stays until the consumer lets go of it.

        What the consumer queues on its stream waits for all earlier work on this buffer; and this buffer's next use
        waits for what the consumer has queued on that stream until then. The stream has to live until that next use,
        or until the buffer is closed.

        Args:
            stream: the consumer's stream by the protocol's numbers (see `rocline.runtime.devices.dlpack`); -1: order
                nothing.
            max_version: the newest DLPack that the consumer knows; from (1, 0) on it gets a versioned capsule.
            dl_device: where it wants the tensor: as it is, or on the host, which takes a copy.
            copy: True: a copy of its own; False: never a copy; None: only where it cannot be helped.

        Raises:
            BufferError: the consumer cannot have it without a copy that it forbids, on that device, or read-only.
            DeviceError: the buffer is closed, or ``stream`` means nothing on its device.
        """
        with self.held():
            return dlpack.export(self, stream, max_version, dl_device, copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Returns DLPack's numbers of the device's type and of the device."""
        return self.device.driver.dlpack_type, self.device.device_id

    def close(self) -> None:
        """Lets go of the memory, which goes back to the pool, ordered after all that was queued with it.

        Memory that a view or a DLPack consumer holds stays until they let go too. A second call does nothing.
        """
        if self._end():
            self.storage.let_go()

    def _copy_on_device(self, source: "Buffer", stream: "Stream") -> None:
        with stream.queueing(), self.held() as target, source.held() as begin:
            if target != begin and abs(target - begin) < self.nbytes:
                raise DeviceError(f"copy_from: {source} and {self} overlap, by all but {abs(target - begin):,} bytes")
            source.use(stream)
            self.use(stream, write=True)
            if target != begin:
                self.device.driver.copy(target, begin, self.nbytes, Direction.ON_DEVICE, stream.handle)

    def _upload(self, source: Array, stream: "Stream") -> None:
        staging, driver = self.device.staging, self.device.driver
        # Refused before anything is pinned.
        self.use(stream, write=True)
        for start in range(0, self.nbytes, CHUNK):
            piece = source[start : start + CHUNK]
            with staging.lend(piece.nbytes, stream) as pinned:
                host_bytes(pinned, piece.nbytes)[:] = piece
                with stream.queueing(), self.held() as pointer:
                    self.use(stream, write=True)
                    driver.copy(pointer + start, pinned, piece.nbytes, Direction.TO_DEVICE, stream.handle)

    def _download(self, target: Array, stream: "Stream") -> None:
        """Fills a contiguous array piece by piece, the next on its way while the host moves one: little is pinned."""
        flat = target.reshape(-1).view(np.uint8)
        pieces = [range(start, min(start + CHUNK, self.nbytes)) for start in range(0, self.nbytes, CHUNK)]
        coming = deque([HostCopy(self, stream, pieces[0])])
        for piece, following in zip_longest(pieces, pieces[1:]):
            if following is not None:
                coming.append(HostCopy(self, stream, following))
            with coming.popleft().arrived() as array:
                flat[piece.start : piece.stop] = array

    def _check_fit(self, call: str, dtype: DType, shape: tuple[int, ...], nbytes: int) -> None:
        if dtype != self.dtype or nbytes != self.nbytes:
            raise DeviceError(
                f"{call}: {dtype.name} {shape} has {nbytes:,} bytes, {self} has {self.nbytes:,}: "
                "dtype and size have to be equal"
            )


class _Held:
    """Memory of the host for NumPy, which keeps this as long as an array on it lives."""

    def __init__(self, storage: Storage, nbytes: int) -> None:
        self.storage = storage
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (nbytes,),
            "data": (storage.pointer, False),
        }

    def __del__(self) -> None:
        self.storage.let_go()


def allocate(device: "Device", shape: int | Sequence[int], dtype: Any, stream: "Stream") -> Buffer:
    """Returns a buffer from the device's pool; see `Device.allocate`."""
    made_shape, made_dtype = checked_shape(shape), checked_dtype(dtype)
    if misfit := device.misfit(stream):
        raise DeviceError(f"allocate on {device}: {stream} is {misfit}")
    nbytes = math.prod(made_shape) * made_dtype.itemsize
    block = device.pool.take(nbytes, stream)

    def release(storage: Storage) -> None:
        block.streams = block.streams | storage.streams
        block.strangers = storage.strangers
        device.pool.give_back(block)

    return Buffer(Storage(device, block.pointer, nbytes, stream, release), made_shape, made_dtype, stream)


def wrap(device: "Device", array: Array) -> Buffer:
    """Returns a buffer on an array's memory; see `Device.wrap`."""
    if not device.driver.host_memory:
        raise DeviceError(f"wrap: {device} cannot use the host's memory; upload() copies an array")
    if not array.flags.c_contiguous:
        raise DeviceError(f"wrap: the array {array.dtype.name} {array.shape} is not contiguous")
    dtype = checked_dtype(array.dtype)
    stream = device.create_stream()
    keep = [array]
    storage = Storage(
        device, array.ctypes.data, array.nbytes, stream, lambda _: keep.clear(), read_only=not array.flags.writeable
    )
    return Buffer(storage, array.shape, dtype, stream)
