"""What is open until it is closed, and who still uses it."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Generic, TypeVar

from rocline.errors import DeviceError

Self = TypeVar("Self", bound="Closing")
Legacy = TypeVar("Legacy")


class Holders(Generic[Legacy]):
    """Who holds something: whoever makes this first of all, and others for a while. The last gets the legacy.

    Counted without a lock, since the collector may drop a holder in the midst of any line.

    Args:
        legacy: what the last holder needs in order to end it.
    """

    def __init__(self, legacy: Legacy) -> None:
        # One item a holder; who takes the first of them is the last.
        self._items: list[Legacy | None] = [legacy]

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return len(self._items) > 1

    def hold(self) -> bool:
        """Counts one more; False, and none more, if the last one let go before."""
        self._items.append(None)
        if self._items[0] is not None:
            return True
        self._items.pop()
        return False

    def let_go(self) -> Legacy | None:
        """Counts one less; the legacy if that was the last."""
        return self._items.pop()


class Closing(ABC):
    """Something that is open until `close` is called: by hand, at the end of a ``with`` block, or when it is dropped.

    Attributes:
        closed: whether it is closed.
    """

    closed: bool = True

    @abstractmethod
    def close(self) -> None:
        """Gives back what this holds; a second call does nothing."""

    def _end(self) -> bool:
        """Marks this as closed; whether it was open, which one of several threads is told."""
        # One step, which no other thread comes between: what is left is the class's own.
        return not self.__dict__.pop("closed", True)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:
            # Nobody is there to catch it, and a failure of the device shows at the next call.
            return

    def check_open(self) -> None:
        """Raises DeviceError if this is closed."""
        if self.closed:
            raise DeviceError(f"{self}: closed")
