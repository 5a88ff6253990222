"""The decode loop: an answer as a stream of text pieces."""

import inspect
import threading
import time
from collections.abc import Generator as PythonGenerator
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from types import TracebackType

from rocline.errors import InputError
from rocline.runtime.decoder import Decoder, Decoding
from rocline.runtime.prefix_cache import PrefixCache
from rocline.runtime.sampling import Sampler, Sampling
from rocline.runtime.stop_strings import StopStrings
from rocline.runtime.tokenizer import Detokenizer, TextTokenizer


@dataclass(frozen=True)
class Generation:
    """A finished answer.

    Attributes:
        text: the new text; it continues the prompt and ends before the stop string, if there was one.
        tokens: the new ids, the eos token or those of the stop string included.
        finish_reason: ``eos``, ``stop`` (a stop string) or ``length`` (max_new_tokens, or a full context or capacity).
        prompt_tokens: how many ids the prompt was.
        reused_tokens: how many of them a `PrefixCache` held already.
        prefill_s: seconds from the start to the first new token.
        decode_s: seconds for the tokens after the first.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    reused_tokens: int
    prefill_s: float
    decode_s: float

    @property
    def decode_rate(self) -> float | None:
        """New tokens a second after the first one; None if there was no second."""
        return (len(self.tokens) - 1) / self.decode_s if len(self.tokens) > 1 else None


@dataclass(frozen=True)
class Plan:
    """How to answer one prompt.

    Attributes:
        sampling: how tokens are chosen.
        stop: strings that end the answer.
        eos_ids: tokens that end it.
        max_new_tokens: how many tokens it has at most.
        prefill_chunk: tokens of the prompt in one run.
    """

    sampling: Sampling
    stop: StopStrings
    eos_ids: frozenset[int]
    max_new_tokens: int
    prefill_chunk: int


@dataclass
class _Progress:
    tokens: list[int]
    finish_reason: str | None = None
    reused_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    stopped: bool = False


class TextStream(Iterator[str]):
    """The pieces of an answer as they become certain; together they are exactly ``result().text``.

    Leaving it early is fine: ``close()``, the end of a ``with`` block or dropping the last reference frees its cache.
    Several threads may share it: each piece goes to one of them.

    Attributes:
        prompt_tokens: how many ids the prompt is.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: TextTokenizer,
        prompt: Sequence[int],
        plan: Plan,
        cache: PrefixCache | None = None,
    ) -> None:
        self.prompt_tokens = len(prompt)
        self._text: list[str] = []
        self._turn = threading.RLock()
        # The decode loop knows its progress, not this object: without a cycle the last reference frees the cache.
        self._progress = _Progress([])
        room = len(prompt) + plan.max_new_tokens
        text = _new_text(decoder, room) if cache is None else cache.lend(prompt, room)
        self._pieces = _decode(text, Detokenizer(tokenizer, prompt), prompt, plan, self._progress)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The new ids so far."""
        return tuple(self._progress.tokens)

    @property
    def finish_reason(self) -> str | None:
        """`Generation.finish_reason`, or None while the answer is not finished."""
        return self._progress.finish_reason

    def __next__(self) -> str:
        with self._turn:
            piece = next(self._pieces)
            self._text.append(piece)
            return piece

    def result(self) -> Generation:
        """Returns the answer; generates what is still missing.

        Raises:
            InputError: the stream was closed before it was finished.
        """
        for _ in self:
            pass
        progress = self._progress
        if progress.finish_reason is None:
            raise InputError(f"the stream was closed after {len(progress.tokens)} tokens, expected a finished one")
        return Generation(
            text="".join(self._text),
            tokens=self.tokens,
            finish_reason=progress.finish_reason,
            prompt_tokens=self.prompt_tokens,
            reused_tokens=progress.reused_tokens,
            prefill_s=progress.prefill_s,
            decode_s=progress.decode_s,
        )

    def close(self) -> None:
        """Stops generating and frees the KV cache; a second call does nothing.

        Another thread that generates ends with the run of the model that it is in, which is waited for.
        """
        self._progress.stopped = True
        with self._turn:
            # A signal's handler may come in the midst of a piece, which ends by itself then.
            if inspect.getgeneratorstate(self._pieces) != inspect.GEN_RUNNING:
                self._pieces.close()

    def __enter__(self) -> "TextStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _new_text(decoder: Decoder, room: int) -> Iterator[Decoding]:
    with closing(decoder.start(room)) as text:
        yield text


def _decode(
    cache: AbstractContextManager[Decoding],
    detokenizer: Detokenizer,
    prompt: Sequence[int],
    plan: Plan,
    progress: _Progress,
) -> PythonGenerator[str, None, None]:
    begin = time.perf_counter()
    with cache as text:
        progress.reused_tokens = len(text.tokens)
        rest = _prefill(text, prompt, plan.prefill_chunk, progress)
        sampler = Sampler(plan.sampling, prompt)
        while True:
            if progress.stopped:
                return
            token = text.choose(rest, sampler)
            progress.tokens.append(token)
            elapsed = time.perf_counter() - begin
            if len(progress.tokens) == 1:
                progress.prefill_s = elapsed
            progress.decode_s = elapsed - progress.prefill_s
            piece = "" if token in plan.eos_ids else plan.stop.push(detokenizer.push(token))
            if plan.stop.found:
                progress.finish_reason = "stop"
            elif token in plan.eos_ids:
                progress.finish_reason = "eos"
            elif len(progress.tokens) == plan.max_new_tokens:
                progress.finish_reason = "length"
            if progress.finish_reason is not None:
                break
            if piece:
                yield piece
            rest = [token]
    if not plan.stop.found:
        piece += plan.stop.push(detokenizer.flush())
        if plan.stop.found:
            progress.finish_reason = "stop"
        piece += plan.stop.flush()
    if piece:
        yield piece


def _prefill(text: Decoding, prompt: Sequence[int], chunk: int, progress: _Progress) -> Sequence[int]:
    """Adds what ``text`` lacks of the prompt but for the last ``chunk`` tokens or fewer, and returns those."""
    start = len(text.tokens)
    while len(prompt) - start > chunk and not progress.stopped:
        text.extend(prompt[start : start + chunk])
        start += chunk
    return prompt[start:]
