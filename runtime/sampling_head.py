"""The sampling head of a static graph: SampleToken's inputs, filled from the options of an answer."""

from typing import Any

import numpy as np

from rocline.runtime.decoder import HEAD_INPUTS, Interface, not_finite
from rocline.runtime.devices import Device, Stream
from rocline.runtime.sampling import Sampler, Sampling

_LARGEST = {-5: "nan", -6: "-inf"}
"""The largest logit, by what SampleToken gives in place of a token on a GPU, which cannot raise: see its spec."""


class SamplingHead:
    """The head's inputs for one text: buffers that are bound once and written where an answer asks for other values.

    Args:
        interface: the graph's; without a head it makes no buffers.
        device, stream: where the session runs.

    Attributes:
        inputs: buffers by input name.
    """

    def __init__(self, interface: Interface, device: Device, stream: Stream) -> None:
        self._folder, self._stream = interface.folder, stream
        self._sampler: Sampler | None = None
        self.inputs = {name: device.upload(HEAD_INPUTS[name], stream=stream) for name in interface.head}

    def serves(self, sampling: Sampling) -> bool:
        """Whether the head chooses tokens as ``sampling`` says; it knows no tokens of the past to penalise."""
        return bool(self.inputs) and sampling.repetition_penalty == 1

    def prepare(self, sampler: Sampler, place: int) -> None:
        """Writes the inputs for the token at ``place`` of the text, which is also the seed's offset."""
        sampling = sampler.sampling
        if sampler is not self._sampler:
            self._sampler = sampler
            self._write("top_k", [min(sampling.top_k, np.iinfo(np.int32).max)])
            for name in ("temperature", "top_p", "min_p"):
                self._write(name, [_held(getattr(sampling, name))])
        if sampling.temperature > 0:
            # A seed has 64 bits, of whichever sign.
            self._write("seed", [[(sampler.seed + 2**63) % 2**64 - 2**63, place]])

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

    def close(self) -> None:
        """Frees the buffers; a second call does nothing."""
        for buffer in self.inputs.values():
            buffer.close()

    def _write(self, name: str, values: list[Any]) -> None:
        self.inputs[name].copy_from(np.array(values, HEAD_INPUTS[name].dtype), stream=self._stream)


def _held(value: float) -> float:
    """Returns ``value``, from 0 up, held to what float32 has: 0 means something else than a number close to it."""
    limits = np.finfo(np.float32)
    return min(max(value, float(limits.tiny)), float(limits.max)) if value else value
