"""What a decoder-only model offers whatever its KV cache is like: tokens in, logits of the last one out."""

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rocline.errors import ModelError
from rocline.runtime.manifest import TensorSpec
from rocline.runtime.sampling import Sampler
from rocline.runtime.session import Session

TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids")
HEAD_INPUTS: dict[str, NDArray[Any]] = {
    "temperature": np.zeros(1, np.float32),
    "top_k": np.zeros(1, np.int32),
    "top_p": np.ones(1, np.float32),
    "min_p": np.zeros(1, np.float32),
    "repetition_penalty": np.ones(1, np.float32),
    "seed": np.zeros((1, 2), np.int64),
}
"""Inputs of the sampling head, which are SampleToken's, with values for the likeliest token."""

FLOATS = ("float32", "float16", "bfloat16")
"""Types of a cache or of logits."""

_PAST = re.compile(r"past_key_values\.(.+)")


class Decoder(ABC):
    """A decoder-only model in a session; texts that it starts share the session and nothing else."""

    @abstractmethod
    def start(self, room: int) -> "Decoding":
        """Returns a text of its own with nothing in its cache and room for ``room`` tokens at least."""


class Decoding(ABC):
    """One text on its way through a `Decoder`, with a cache of its own.

    Attributes:
        tokens: the ids in the cache, oldest first.
        room: most tokens that the cache can take; None where it grows.
        turn: held during each run, and while the cache is freed, which another thread may do.
    """

    room: int | None = None

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.turn = threading.RLock()

    @abstractmethod
    def extend(self, tokens: Sequence[int]) -> None:
        """Adds ``tokens`` to the cache.

        Raises:
            RoclineError: the run failed, or the session is closed.
        """

    @abstractmethod
    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Adds ``tokens``, one at least, to the cache and returns the logits [vocabulary] after the last one.

        Raises:
            ModelError: the largest logit is NaN or infinite.
            RoclineError: the run failed, or the session is closed.
        """

    def choose(self, tokens: Sequence[int], sampler: Sampler) -> int:
        """Adds ``tokens`` to the cache and returns the id that ``sampler`` takes next; raises as `logits` does."""
        return sampler.choose(self.logits(tokens))

    @abstractmethod
    def rewind(self, length: int) -> None:
        """Forgets the tokens from place ``length`` on, and where the layout cannot stop there, all of them."""

    @abstractmethod
    def close(self) -> None:
        """Frees the cache; a second call does nothing."""


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a decoder-only graph, found from their names.

    Attributes:
        folder: the model's folder, for messages.
        tokens: which of `TOKEN_INPUTS` it has, in that order.
        present: for each ``past_key_values.*`` input the output that follows it.
        inputs, outputs: all of them, by name.
        static: present has past's own shape: one buffer of fixed size may serve as both.
        head: the sampling head's inputs, where the graph has an output ``next_token``.
    """

    folder: str
    tokens: tuple[str, ...]
    present: dict[str, str]
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    static: bool
    head: tuple[str, ...]

    @classmethod
    def read(cls, session: Session) -> "Interface":
        """Finds the interface of ``session``'s model.

        Raises:
            ModelError: it has no KV cache, or inputs that no decoder-only model has.
        """
        inputs = {spec.name: spec for spec in session.inputs}
        outputs = {spec.name: spec for spec in session.outputs}
        head = tuple(name for name in HEAD_INPUTS if name in inputs) if "next_token" in outputs else ()
        present = {name: f"present.{match[1]}" for name in inputs if (match := _PAST.fullmatch(name))}
        unknown = [name for name in inputs if name not in (*TOKEN_INPUTS, *head) and name not in present]
        if unknown:
            raise ModelError(
                f"{session.folder}: inputs {', '.join(unknown)} are unknown, expected a decoder-only model with "
                f"{', '.join(TOKEN_INPUTS)} and past_key_values.*"
            )
        missing = [name for name in ("logits", *present.values()) if name not in outputs]
        if "input_ids" not in inputs or not present or missing:
            raise ModelError(
                f"{session.folder}: not a text generation model with a KV cache (inputs {', '.join(inputs)}; "
                f"outputs {', '.join(sorted(outputs))}); export it with --task text-generation"
            )
        return cls(
            folder=str(session.folder),
            tokens=tuple(name for name in TOKEN_INPUTS if name in inputs),
            present=present,
            inputs=inputs,
            outputs=outputs,
            static="position_ids" in inputs
            and "attention_mask" not in inputs
            and all(inputs[past].shape == outputs[now].shape for past, now in present.items()),
            head=head,
        )

    def cache_shape(self, name: str, length: int, dtypes: Sequence[str]) -> list[int]:
        """Returns the shape of one past input for one text and ``length`` tokens: [1, heads, length, size].

        Raises:
            ModelError: the input is no cache of that layout and one of these types.
        """
        spec = self.inputs[name]
        if len(spec.shape) == 4 and spec.dtype in dtypes:
            _, heads, axis, size = spec.shape
            if isinstance(heads, int) and isinstance(axis, str) and isinstance(size, int):
                return [1, heads, length, size]
        raise ModelError(
            f"{self.folder}: input '{name}' is {spec.dtype} {spec.shape}, expected a {' or '.join(dtypes)} cache "
            "(batch, heads, tokens, size) with heads and size fixed"
        )


def finite(logits: NDArray[np.float32], folder: str, tokens: int) -> NDArray[np.float32]:
    """Returns ``logits`` [vocabulary], computed after ``tokens`` tokens, if the largest one is a finite number.

    Raises:
        ModelError: it is NaN or infinite.
    """
    largest = logits.max()
    if not np.isfinite(largest):
        raise not_finite(str(largest), folder, tokens)
    return logits


def not_finite(largest: str, folder: str, tokens: int) -> ModelError:
    """Returns the error for logits after ``tokens`` tokens whose largest one is ``largest``."""
    return ModelError(
        f"{folder}: the largest logit after token {tokens} is {largest}, expected a finite number; "
        "the weights are damaged, or overflow in this dtype"
    )
