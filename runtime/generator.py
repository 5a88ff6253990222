"""Text generation with decoder-only models, in the caller's thread."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict

from rocline.errors import InputError
from rocline.runtime.decoder import Decoder
from rocline.runtime.hf_config import GenerationConfig
from rocline.runtime.report import Report
from rocline.runtime.sampling import Sampling
from rocline.runtime.session import Session
from rocline.runtime.stop_strings import StopStrings
from rocline.runtime.text_stream import Generation, Plan, TextStream
from rocline.runtime.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rocline.runtime.chat import ChatTemplate, Message

DEFAULT_MAX_NEW_TOKENS = 256

PREFILL_CHUNK = 128
"""Tokens of the prompt that go through the model in one run.

A run cannot be interrupted, and Optimum's graphs give the logits of every token of it: chunks bound how long Ctrl-C
waits, and the memory, and are no slower than one long run (``benchmarks/decode.py --prefill``).
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
    """Continues text with a decoder-only model whose KV cache grows by one token a step.

    Each stream has a cache of its own and several may be open at once, in one thread or several: they share the
    session and nothing else.

    Args:
        model: a model folder, or an .onnx file with the tokenizer and configuration beside it.
        providers, strict, device_id, options: as for `rocline.Session`.
        prefill_chunk: tokens of the prompt that go through the model in one run, see `PREFILL_CHUNK`.

    Attributes:
        tokenizer: the model's tokenizer.
        config: what ends a generation, from the model's configuration.

    Raises:
        ModelError: the model is no decoder-only model with a cache, or a file is missing or damaged.
        ProviderError, InputError: as for `rocline.Session`.
    """

    def __init__(
        self,
        model: str | Path,
        providers: Sequence[str] | None = None,
        *,
        strict: bool = False,
        device_id: int = 0,
        options: Mapping[str, Any] | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> None:
        if prefill_chunk < 1:
            raise InputError(f"prefill_chunk is {prefill_chunk}, expected a whole number from 1 up")
        self._prefill_chunk = prefill_chunk
        self._session = Session(model, providers, strict=strict, device_id=device_id, options=options)
        self._decoder = Decoder(self._session, device_id)
        folder = self._session.folder
        self.tokenizer = TextTokenizer(folder)
        self.config = GenerationConfig.read(folder)

    @property
    def report(self) -> Report:
        """Where the model runs, and why."""
        return self._session.report

    def generate(self, prompt: str, **options: "Unpack[Options]") -> Generation:
        """Returns the continuation of ``prompt``; arguments and errors as for `stream`."""
        with self.stream(prompt, **options) as stream:
            return stream.result()

    def stream(self, prompt: str, **options: "Unpack[Options]") -> TextStream:
        """Continues ``prompt`` piece by piece.

        Args:
            prompt: text, taken as it is: no chat template. The empty one starts from the model's bos token.
            options: see `Options`.

        Raises:
            InputError: an option does not fit, the prompt leaves no room in the model's context, or it is empty and
                the model names no bos token. Raised here, not at the first piece.
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
        return self._start(ids, options)

    def chat(self, messages: "Sequence[Message]", **options: "Unpack[Options]") -> Generation:
        """Returns the answer to a conversation; arguments and errors as for `stream_chat`."""
        with self.stream_chat(messages, **options) as stream:
            return stream.result()

    def stream_chat(self, messages: "Sequence[Message]", **options: "Unpack[Options]") -> TextStream:
        """Answers a conversation piece by piece.

        Args:
            messages: ``{"role": "user", "content": "..."}`` and so on, oldest first.
            options: see `Options`.

        Raises:
            ModelError: the model has no chat template, or the template is broken or does what it must not.
            InputError: the template refuses these messages; or as for `stream`.
        """
        prompt = self.chat_template.render(messages)
        return self._start(self.tokenizer.encode(prompt, add_special_tokens=False), options)

    @cached_property
    def chat_template(self) -> "ChatTemplate":
        """The model's chat template, read when it is first asked for.

        Raises:
            ModelError: there is none, or it is no valid jinja2.
        """
        from rocline.runtime.chat import ChatTemplate

        return ChatTemplate.load(self._session.folder, self.tokenizer.special_tokens)

    def _start(self, ids: list[int], options: Options) -> TextStream:
        sampling: dict[str, Any] = dict(options)
        wanted = sampling.pop("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
        stop = StopStrings(sampling.pop("stop", ()))
        if not isinstance(wanted, int) or wanted < 1:
            raise InputError(f"max_new_tokens is {wanted}, expected a whole number from 1 up")
        context = self.config.context_length
        if context is not None and len(ids) >= context:
            raise InputError(f"the prompt is {len(ids)} tokens, expected fewer than the model's context of {context}")
        plan = Plan(
            sampling=Sampling(**sampling),
            stop=stop,
            eos_ids=self.config.eos_ids,
            max_new_tokens=wanted if context is None else min(wanted, context - len(ids)),
            prefill_chunk=self._prefill_chunk,
        )
        return TextStream(self._decoder, self.tokenizer, ids, plan)

    def close(self) -> None:
        """Frees the model; open streams raise at their next piece. A second call does nothing."""
        self._session.close()

    def __enter__(self) -> "Generator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
