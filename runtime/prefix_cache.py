"""A KV cache that outlives one stream."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from types import TracebackType

from rocline.errors import InputError, RoclineError
from rocline.runtime.decoder import Decoder, Decoding


class PrefixCache:
    """Keeps the KV cache of one stream for the next, which computes only what its prompt does not share with that text.

    Made by `rocline.Generator.prefix_cache`, and given to one stream after the other. A static cache goes back to the
    last token that the two texts share; a growing one is of use where the new prompt continues all of the old text.

    Attributes:
        decoder: the generator's, whose tokens the cache holds.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._text: Decoding | None = None
        self._taken = Lock()
        self._closed = False

    @contextmanager
    def lend(self, prompt: Sequence[int], room: int) -> Iterator[Decoding]:
        """Lends the cache, with a proper prefix of ``prompt`` in it and room for ``room`` tokens.

        Where the room is too small, a cache of twice the old one's at least begins empty: a conversation that grows is
        then prefilled anew a few times, not at each turn.

        Raises:
            InputError: another stream has it.
            RoclineError: it is closed.
        """
        if self._closed:
            raise RoclineError("cache: closed")
        if not self._taken.acquire(blocking=False):
            raise InputError("cache: another stream is using it, expected one stream at a time: finish or close that")
        try:
            text = self._text
            if text is not None and text.room is not None and text.room < room:
                room = max(room, 2 * text.room)
                self._forget()
            text = self._text
            if text is None:
                text = self._text = self.decoder.start(room)
            if self._closed:
                # Another thread closed it while it began.
                self._forget()
                raise RoclineError("cache: closed")
            text.rewind(_shared(text.tokens, prompt))
            yield text
        finally:
            self._taken.release()

    def close(self) -> None:
        """Frees the cache; a stream that uses it raises at its next piece. A second call does nothing."""
        self._closed = True
        self._forget()

    def __enter__(self) -> "PrefixCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forget(self) -> None:
        text, self._text = self._text, None
        if text is not None:
            text.close()


def _shared(old: Sequence[int], prompt: Sequence[int]) -> int:
    """Returns how many tokens both begin with; one of the prompt is left over, for its logits."""
    most = min(len(old), len(prompt) - 1)
    return next((place for place in range(most) if old[place] != prompt[place]), most)
