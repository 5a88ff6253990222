"""Memory on a device, shared by whoever holds it, and the streams it was used on."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from rocline.runtime.devices.closing import Holders

if TYPE_CHECKING:
    from rocline.runtime.devices.device import Device
    from rocline.runtime.devices.streams import Stream


class Storage:
    """Memory that buffers which are views of each other, and DLPack consumers, share; who makes it is its first holder.

    Attributes:
        device: where it is.
        pointer: its address.
        nbytes: its size.
        read_only: whether it may not be written.
        writer: the stream that wrote it last, or that it was allocated for.
        readers: the streams that have read it since.
        strangers: whether a DLPack consumer may have used it on a stream of which nothing is known.
    """

    def __init__(
        self,
        device: "Device",
        pointer: int,
        nbytes: int,
        stream: "Stream | None",
        release: "Callable[[Storage], None]",
        *,
        read_only: bool = False,
    ) -> None:
        self.device, self.pointer, self.nbytes, self.read_only = device, pointer, nbytes, read_only
        self.writer = stream
        self.readers: set[Stream] = set()
        self.strangers = False
        self._holders = Holders(release)

    @property
    def streams(self) -> "set[Stream]":
        """Every stream whose work may still use the memory."""
        return self.readers | ({self.writer} if self.writer is not None else set())

    def hold(self) -> bool:
        """Counts one more holder; False, and none more, if the last one let go before."""
        return self._holders.hold()

    def let_go(self) -> None:
        """Counts one holder less; the memory goes back with the last one."""
        release = self._holders.let_go()
        if release is not None:
            release(self)

    def use(self, stream: "Stream", write: bool) -> None:
        """Lets ``stream`` wait for earlier uses that the next one must not overtake, and notes it.

        Who queues work holds the driver's lock from here until it is queued, lest another stream wait for too little.
        """
        if self.writer is stream and (not write or not self.readers):
            return
        if not write and stream in self.readers:
            return
        with self.device.driver.lock:
            self.device.driver.handovers += 1
            # Also by a write of what has read it: the stream that wrote it may have read it since.
            if self.writer is not None and self.writer is not stream:
                stream.wait(self.writer)
            if write:
                for reader in self.readers - {stream}:
                    stream.wait(reader)
                self.writer = stream
                self.readers.clear()
            else:
                # A closed stream was waited for; memory that is only ever read would collect them for ever.
                self.readers = {reader for reader in self.readers if not reader.closed} | {stream}
