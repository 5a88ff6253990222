"""What an export is doing: one line rewritten on a terminal, one line a stage where the output is piped."""

import threading
import time
from types import TracebackType
from typing import TextIO


class Progress:
    """Reports stages with the seconds each took; call it with a stage's name when that stage begins.

    On a terminal one line is rewritten every second while a stage runs; elsewhere each stage is one line, written when
    it ends. A context manager: leaving it ends the last stage.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._stage: str | None = None
        self._started = 0.0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="rocline-progress", daemon=True)

    def __enter__(self) -> "Progress":
        if self._live:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._live:
            self._ticker.join()
        with self._lock:
            self._finish("" if error is None else " (stopped)")

    def __call__(self, stage: str) -> None:
        """Ends the stage before and begins ``stage``, e.g. ``tracing with PyTorch``."""
        with self._lock:
            self._finish("")
            self._stage, self._started = stage, time.monotonic()
            if self._live:
                self._rewrite()

    def _tick(self) -> None:
        while not self._closed.wait(1.0):
            with self._lock:
                if self._stage is not None:
                    self._rewrite()

    def _rewrite(self) -> None:
        # Carriage return, then "erase to the end of the line": a shorter line leaves nothing of a longer one.
        self._stream.write(f"\r\x1b[K{self._line()}")
        self._stream.flush()

    def _finish(self, note: str) -> None:
        if self._stage is None:
            return
        self._stream.write(f"\r\x1b[K{self._line()}{note}\n" if self._live else f"{self._line()}{note}\n")
        self._stream.flush()
        self._stage = None

    def _line(self) -> str:
        return f"{time.monotonic() - self._started:6.1f} s  {self._stage}"
