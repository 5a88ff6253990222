"""The sampling head of a static graph: SampleToken's inputs, filled from the options of an answer."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rocline.runtime.decoder import Interface, not_finite
from rocline.runtime.sampling import Sampler, Sampling

_LARGEST = {-5: "nan", -6: "-inf"}
"""The largest logit, by what SampleToken gives in place of a token on a GPU, which cannot raise: see its spec."""


class SamplingHead:
    """The head's inputs for one text: arrays that are bound once and written in place.

    Attributes:
        inputs: arrays by input name; empty where the graph has no head.
    """

    def __init__(self, interface: Interface) -> None:
        self._folder = interface.folder
        self._sampler: Sampler | None = None
        neutral: dict[str, NDArray[Any]] = {
            "temperature": np.zeros(1, np.float32),
            "top_k": np.zeros(1, np.int32),
            "top_p": np.ones(1, np.float32),
            "min_p": np.zeros(1, np.float32),
            "repetition_penalty": np.ones(1, np.float32),
            "seed": np.zeros((1, 2), np.int64),
        }
        self.inputs = {name: neutral[name] for name in interface.head}

    def serves(self, sampling: Sampling) -> bool:
        """Whether the head chooses tokens as ``sampling`` says; it knows no tokens of the past to penalise."""
        return bool(self.inputs) and sampling.repetition_penalty == 1

    def prepare(self, sampler: Sampler, place: int) -> None:
        """Writes the inputs for the token at ``place`` of the text, which is also the seed's offset."""
        if sampler is not self._sampler:
            self._sampler = sampler
            for name in ("temperature", "top_k", "top_p", "min_p"):
                self.inputs[name][0] = getattr(sampler.sampling, name)
            # A seed has 64 bits, of whichever sign.
            self.inputs["seed"][0, 0] = (sampler.seed + 2**63) % 2**64 - 2**63
        self.inputs["seed"][0, 1] = place

    def checked(self, token: int, place: int) -> int:
        """Returns ``token`` if it is one.

        Raises:
            ModelError: the logits after ``place`` tokens held NaN or nothing but -inf.
        """
        if token < 0:
            raise not_finite(_LARGEST[token], self._folder, place)
        return token

    def explain(self, message: str, place: int) -> Exception | None:
        """Returns the error for a run that failed with ``message`` where the head refused the logits, else None."""
        if "SampleToken: input 'logits'" not in message:
            return None
        return not_finite("nan" if "NaN" in message else "-inf", self._folder, place)
