"""Text generation with decoder-only models, in the caller's thread."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict

from rocline.errors import InputError
from rocline.runtime.decoder import Decoder, Interface
from rocline.runtime.growing_cache import GrowingDecoder
from rocline.runtime.hf_config import GenerationConfig
from rocline.runtime.options import whole_number
from rocline.runtime.prefix_cache import PrefixCache
from rocline.runtime.report import Report
from rocline.runtime.sampling import Sampling
from rocline.runtime.session import Session
from rocline.runtime.static_cache import StaticDecoder
from rocline.runtime.stop_strings import StopStrings
from rocline.runtime.text_stream import Generation, Plan, TextStream
from rocline.runtime.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rocline.runtime.chat import ChatTemplate, Message

DEFAULT_MAX_NEW_TOKENS = 256

PREFILL_CHUNK = 128
"""Tokens of the prompt that go through the model in one run.

A run cannot be interrupted, and a graph with a growing cache gives the logits of every token of it: chunks bound how
long Ctrl-C waits, and the memory, and cost next to nothing (``benchmarks/decode.py --prefill``).
"""


class Options(TypedDict, total=False):
    """What `Generator.stream` and its siblings take by keyword.

    Attributes:
        max_new_tokens: how many tokens at most (256 if not given); fewer where the model's context is full before.
        stop: strings that end the answer and are not part of it.
        temperature, top_k, top_p, min_p, repetition_penalty, seed: see `rocline.runtime.sampling.Sampling`; greedy
            unless a temperature is given, whatever the model's generation_config.json recommends.
    """

    max_new_tokens: int
    stop: Sequence[str]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None


class Generator:
    """Continues text with a decoder-only model, whose KV cache is either static or growing, as it was exported.

    Each stream has a cache of its own and several may be open at once, in one thread or several: they share the
    session and nothing else.

    Args:
        model: a model folder, or an .onnx file with the tokenizer and configuration beside it.
        providers, strict, device_id, options: as for `rocline.Session`.
        capacity: most tokens that prompt and answer may have together. A static cache takes its memory at once: for
            so many tokens a stream, or where no capacity is given for the prompt and ``max_new_tokens``, rounded up to
            256. None: the model's context, and no limit where it names none.
        prefill_chunk: tokens of the prompt that go through the model in one run, see `PREFILL_CHUNK`.

    Attributes:
        tokenizer: the model's tokenizer.
        config: what ends a generation, from the model's configuration.
        prefill_chunk: what streams that begin from now on take.

    Raises:
        ModelError: the model is no decoder-only model with a cache, or a file is missing or damaged.
        InputError: the capacity is above the model's context; or as for `rocline.Session`.
        ProviderError: as for `rocline.Session`.
    """

    def __init__(
        self,
        model: str | Path,
        providers: Sequence[str] | None = None,
        *,
        strict: bool = False,
        device_id: int = 0,
        options: Mapping[str, Any] | None = None,
        capacity: int | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> None:
        capacity = None if capacity is None else whole_number("capacity", capacity, 1)
        prefill_chunk = whole_number("prefill_chunk", prefill_chunk, 1)
        self._session = Session(model, providers, strict=strict, device_id=device_id, options=options)
        with ExitStack() as unless_made:
            unless_made.callback(self._session.close)
            folder = self._session.folder
            self.config = GenerationConfig.read(folder)
            context = self.config.context_length
            if capacity is not None and context is not None and capacity > context:
                raise InputError(f"capacity is {capacity}, expected at most the model's context of {context} tokens")
            self._capacity = capacity
            interface = Interface.read(self._session)
            self._decoder: Decoder = (
                StaticDecoder(self._session, interface, capacity, context)
                if interface.static
                else GrowingDecoder(self._session, interface, device_id)
            )
            self.prefill_chunk = prefill_chunk
            self.tokenizer = TextTokenizer(folder)
            unless_made.pop_all()

    @property
    def report(self) -> Report:
        """Where the model runs, and why."""
        return self._session.report

    def prefix_cache(self) -> PrefixCache:
        """Returns a KV cache for one stream after the other, which compute only what is new in their prompts."""
        return PrefixCache(self._decoder)

    def generate(self, prompt: str, *, cache: PrefixCache | None = None, **options: "Unpack[Options]") -> Generation:
        """Returns the continuation of ``prompt``; arguments and errors as for `stream`."""
        with self.stream(prompt, cache=cache, **options) as stream:
            return stream.result()

    def stream(self, prompt: str, *, cache: PrefixCache | None = None, **options: "Unpack[Options]") -> TextStream:
        """Continues ``prompt`` piece by piece.

        Args:
            prompt: text, taken as it is: no chat template. The empty one starts from the model's bos token.
            cache: this generator's `prefix_cache`, which no other stream may use before this one is closed.
            options: see `Options`.

        Raises:
            InputError: an option does not fit, the prompt leaves no room in the context or capacity, it is empty and
                the model names no bos token, or the cache is another generator's: raised here. The cache is in use:
                raised at the first piece.
            ModelError: the logits are NaN or infinite.
            RoclineError: a run failed, or the generator is closed.
        """
        if not isinstance(prompt, str):
            raise InputError(f"prompt is a {type(prompt).__name__}, expected text")
        ids = self.tokenizer.encode(prompt)
        if not ids:
            if self.config.bos_id is None:
                raise InputError("prompt is empty, and the model names no bos token to start from: give some text")
            ids = [self.config.bos_id]
        return self._start(ids, cache, options)

    def chat(
        self, messages: "Sequence[Message]", *, cache: PrefixCache | None = None, **options: "Unpack[Options]"
    ) -> Generation:
        """Returns the answer to a conversation; arguments and errors as for `stream_chat`."""
        with self.stream_chat(messages, cache=cache, **options) as stream:
            return stream.result()

    def stream_chat(
        self, messages: "Sequence[Message]", *, cache: PrefixCache | None = None, **options: "Unpack[Options]"
    ) -> TextStream:
        """Answers a conversation piece by piece.

        Args:
            messages: ``{"role": "user", "content": "..."}`` and so on, oldest first.
            cache, options: as for `stream`.

        Raises:
            ModelError: the model has no chat template, or the template is broken or does what it must not.
            InputError: the template refuses these messages; or as for `stream`.
        """
        prompt = self.chat_template.render(messages)
        return self._start(self.tokenizer.encode(prompt, add_special_tokens=False), cache, options)

    @cached_property
    def chat_template(self) -> "ChatTemplate":
        """The model's chat template, read when it is first asked for.

        Raises:
            ModelError: there is none, or it is no valid jinja2.
        """
        from rocline.runtime.chat import ChatTemplate

        return ChatTemplate.load(self._session.folder, self.tokenizer.special_tokens)

    def _start(self, ids: list[int], cache: PrefixCache | None, options: Options) -> TextStream:
        if cache is not None and cache.decoder is not self._decoder:
            raise InputError("cache: another generator's, expected one from this generator's prefix_cache()")
        sampling: dict[str, Any] = dict(options)
        wanted = whole_number("max_new_tokens", sampling.pop("max_new_tokens", DEFAULT_MAX_NEW_TOKENS), 1)
        stop = StopStrings(sampling.pop("stop", ()))
        limit = self._capacity or self.config.context_length
        if limit is not None and len(ids) >= limit:
            what = "model's context" if self._capacity is None else "capacity"
            raise InputError(f"the prompt is {len(ids)} tokens, expected fewer than the {what} of {limit}")
        plan = Plan(
            sampling=Sampling(**sampling),
            stop=stop,
            eos_ids=self.config.eos_ids,
            max_new_tokens=wanted if limit is None else min(wanted, limit - len(ids)),
            prefill_chunk=self.prefill_chunk,
        )
        return TextStream(self._decoder, self.tokenizer, ids, plan, cache)

    def close(self) -> None:
        """Frees the model; open streams raise at their next piece. A second call does nothing."""
        self._session.close()

    def __enter__(self) -> "Generator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
