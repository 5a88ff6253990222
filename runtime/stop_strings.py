"""Stop strings in a stream of text pieces."""

from collections.abc import Sequence

from rocline.errors import InputError


class StopStrings:
    """Passes text through until one of the stop strings appears; a stop string itself is never given out.

    Attributes:
        found: whether a stop string has appeared; the stream ends there.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Takes the stop strings.

        Raises:
            InputError: one of them is empty, or no list of them was given, but a bare string for instance.
        """
        if isinstance(stops, str) or not isinstance(stops, Sequence):
            raise InputError(f"stop: {stops!r}, expected a list of strings")
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise InputError(f"stop: {stop!r} is not a stop string, expected text of at least one character")
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Returns the text that cannot belong to a stop string any more."""
        text = self._held + piece
        starts = [start for start in (text.find(stop) for stop in self._stops) if start >= 0]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Returns what was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
