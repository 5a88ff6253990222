"""What is open until it is closed."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

from rocline.errors import DeviceError

Self = TypeVar("Self", bound="Closing")


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
