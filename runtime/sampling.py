"""From logits to the next token: greedy, or sampled with the usual knobs, in NumPy."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rocline.errors import InputError
from rocline.runtime.options import whole_number


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The filters apply in the order of the fields, as in transformers.

    Attributes:
        repetition_penalty: divides positive and multiplies negative logits of tokens already seen, prompt included;
            1 is off.
        temperature: 0 takes the most likely token; above 0 divides the logits before sampling.
        top_k: keep only this many of the most likely tokens; 0 is off.
        top_p: keep the most likely tokens until they hold this share of the probability; 1 is off.
        min_p: keep only tokens at least this share as likely as the most likely one; 0 is off.
        seed: makes a sampled answer reproducible; None draws a fresh one.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _require("repetition_penalty", self.repetition_penalty, lambda value: 0 < value < np.inf, "a number above 0")
        _require("temperature", self.temperature, lambda value: 0 <= value < np.inf, "0 (greedy) or a number above")
        whole_number("top_k", self.top_k, 0)
        _require("top_p", self.top_p, lambda value: 0 < value <= 1, "a number above 0 and at most 1")
        _require("min_p", self.min_p, lambda value: 0 <= value <= 1, "a number from 0 to 1")
        if self.seed is not None:
            whole_number("seed", self.seed, 0)


class Sampler:
    """Chooses the tokens of one answer.

    Greedy: the first of the highest logits. Sampled: one uniform number from NumPy's Philox generator a token, so
    that the same seed and logits give the same tokens on every machine.

    Attributes:
        sampling: how tokens are chosen.
        seed: sampling's, or the fresh one that was drawn in its place.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        self.seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._seen = set(prompt)
        self._random = np.random.Generator(np.random.Philox(self.seed))

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Returns the next token's id for ``logits`` [vocabulary] and remembers it for the repetition penalty."""
        options = self.sampling
        if options.repetition_penalty != 1:
            logits = penalize(logits, self._seen, options.repetition_penalty)
        token = int(np.argmax(logits)) if options.temperature == 0 else self._draw(logits)
        self._seen.add(token)
        return token

    def _draw(self, logits: NDArray[np.float32]) -> int:
        tokens, probabilities = candidates(logits, self.sampling)
        bounds = np.cumsum(probabilities)
        place = np.searchsorted(bounds, self._random.random() * bounds[-1], side="right")
        return int(tokens[min(int(place), len(tokens) - 1)])


def penalize(logits: NDArray[np.float32], seen: set[int], penalty: float) -> NDArray[np.float32]:
    """Returns a copy of ``logits`` [vocabulary] with the tokens in ``seen`` made less likely (arXiv:1909.05858)."""
    ids = np.fromiter(seen, np.int64, len(seen))
    ids = ids[ids < len(logits)]
    logits = logits.copy()
    logits[ids] = np.where(logits[ids] < 0, logits[ids] * penalty, logits[ids] / penalty)
    return logits


def candidates(logits: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the tokens that temperature, top-k, top-p and min-p leave, most likely first, and their probabilities.

    Ties with the last of the top k are kept, and the most likely token always is.
    """
    scaled = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature leaves the likeliest token alone
        scaled = (scaled - scaled.max()) / sampling.temperature
    tokens = np.arange(len(scaled))
    if 0 < sampling.top_k < len(scaled):
        tokens = np.flatnonzero(scaled >= np.partition(scaled, -sampling.top_k)[-sampling.top_k])
    tokens = tokens[np.argsort(-scaled[tokens], kind="stable")]
    probabilities = np.exp(scaled[tokens])
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        before = np.cumsum(probabilities) - probabilities
        tokens, probabilities = tokens[before < sampling.top_p], probabilities[before < sampling.top_p]
    likely = probabilities >= sampling.min_p * probabilities[0]
    tokens, probabilities = tokens[likely], probabilities[likely]
    return tokens, probabilities / probabilities.sum()


def _require(name: str, value: Any, fits: Callable[[float], bool], expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not fits(float(value)):
        raise InputError(f"{name} is {value!r}, expected {expected}")
