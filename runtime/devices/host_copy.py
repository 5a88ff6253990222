"""HostCopy: a buffer's contents on their way to the host."""

import contextlib
import ctypes
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from rocline.errors import DeviceError
from rocline.runtime.devices.closing import Closing
from rocline.runtime.devices.driver import Direction

if TYPE_CHECKING:
    from rocline.runtime.devices.buffer import Buffer
    from rocline.runtime.devices.streams import Stream

Array = np.ndarray[Any, Any]

# NumPy's and ctypes' own ways to an array at an address keep a type for each length, for ever.
_VIEW = ctypes.pythonapi.PyMemoryView_FromMemory
_VIEW.restype, _VIEW.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_PYBUF_WRITE = 0x200


class HostCopy(Closing):
    """A copy of a buffer on its way to the host; `Buffer.fetch` makes them.

    Args:
        buffer: what to copy.
        stream: where to queue the copy.
        piece: the bytes to copy, as uint8; the whole tensor if None.

    Attributes:
        shape: sizes of the axes.
        dtype: NumPy's dtype.
    """

    def __init__(self, buffer: "Buffer", stream: "Stream", piece: range | None = None) -> None:
        self.shape, self.dtype, self._nbytes = buffer.shape, buffer.dtype, buffer.nbytes
        if piece is not None:
            self.shape, self.dtype, self._nbytes = (len(piece),), np.dtype(np.uint8), len(piece)
        start = 0 if piece is None else piece.start
        # Refused before anything is pinned.
        buffer.use(stream)
        driver, self._staging = buffer.device.driver, buffer.device.staging
        self._block = self._staging.take(self._nbytes)
        try:
            with stream.queueing(), buffer.held() as pointer:
                buffer.use(stream)
                driver.copy(self._block[0], pointer + start, self._nbytes, Direction.TO_HOST, stream.handle)
        except BaseException:
            self._staging.give_back(self._block, self._staging.mark(self._block, stream))
            raise
        self._event = self._staging.mark(self._block, stream)
        self.closed = False
        buffer.device.close_with(self)

    def __repr__(self) -> str:
        return f"copy of {self.dtype.name} {self.shape}"

    @property
    def done(self) -> bool:
        """Whether the copy has arrived; never waits."""
        self.check_open()
        return self._event.done

    def view(self) -> Array:
        """Waits for the copy and returns it in place: an array that is valid until this is closed."""
        self.check_open()
        return self._wait()

    @contextlib.contextmanager
    def arrived(self) -> Iterator[Array]:
        """Waits for the copy and gives it in place to a block, whoever closes the device meanwhile; closes this."""
        if not self._end():
            raise DeviceError(f"{self}: closed")
        try:
            yield self._wait()
        finally:
            self._staging.give_back(self._block, self._event)

    def numpy(self) -> Array:
        """Waits for the copy, closes this, and returns an array of the caller's own."""
        with self.arrived() as array:
            return array.copy()

    def close(self) -> None:
        """Gives the memory back, for use when the copy is done; a second call does nothing."""
        if self._end():
            self._staging.give_back(self._block, self._event)

    def _wait(self) -> Array:
        self._event.synchronize()
        return host_bytes(self._block[0], self._nbytes).view(self.dtype).reshape(self.shape)


def host_bytes(pointer: int, nbytes: int) -> Array:
    """Returns host memory as bytes, without a copy."""
    array: Array = np.asarray(_VIEW(pointer, nbytes, _PYBUF_WRITE))
    return array
