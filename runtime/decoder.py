"""A decoder-only graph with a growing KV cache: tokens in, logits of the last one out."""

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rocline.errors import ModelError, RoclineError
from rocline.runtime.inputs import numpy_dtype
from rocline.runtime.manifest import TensorSpec
from rocline.runtime.ort_log import essence
from rocline.runtime.providers import resolve
from rocline.runtime.session import Session

if TYPE_CHECKING:
    from onnxruntime import OrtValue

_TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids")
_PAST = re.compile(r"past_key_values\.(.+)")


class Decoder:
    """The interface of Optimum's decoder graphs, found from the names of inputs and outputs.

    ``input_ids`` [1, new], ``attention_mask`` [1, past + new] and ``position_ids`` [1, new] are int64;
    ``past_key_values.*`` [1, heads, past, size] comes back one chunk longer as ``present.*``; ``logits`` is
    [1, new, vocabulary].

    Args:
        session: the model; it stays the caller's to close.
        device_id: the GPU that holds the cache, where the session runs on one.
    """

    def __init__(self, session: Session, device_id: int) -> None:
        self.session = session
        self.device = resolve([session.report.active[0]], ())[0].device
        self.device_id = 0 if self.device == "cpu" else device_id
        inputs = {spec.name: spec for spec in session.inputs}
        outputs = {spec.name for spec in session.outputs}
        self.present = {name: f"present.{match[1]}" for name in inputs if (match := _PAST.fullmatch(name))}
        unknown = [name for name in inputs if name not in _TOKEN_INPUTS and name not in self.present]
        if unknown:
            raise ModelError(
                f"{session.folder}: inputs {', '.join(unknown)} are unknown, expected a decoder-only model with "
                f"{', '.join(_TOKEN_INPUTS)} and past_key_values.*"
            )
        missing = [name for name in ("logits", *self.present.values()) if name not in outputs]
        if "input_ids" not in inputs or not self.present or missing:
            raise ModelError(
                f"{session.folder}: not a text generation model with a KV cache (inputs {', '.join(inputs)}; "
                f"outputs {', '.join(sorted(outputs))}); export it with --task text-generation"
            )
        self.token_inputs = tuple(name for name in _TOKEN_INPUTS if name in inputs)
        self.empty_cache = {name: _empty(session, inputs[name]) for name in self.present}

    def start(self) -> "Decoding":
        """Returns a text of its own with nothing in its cache; texts share the session and nothing else."""
        return Decoding(self)


class Decoding:
    """One text on its way through a `Decoder`. Its cache stays where it was computed and is never copied to NumPy.

    Attributes:
        length: tokens in the cache.
    """

    def __init__(self, decoder: Decoder) -> None:
        from onnxruntime import OrtValue

        self._decoder = decoder
        self._binding = decoder.session.ort.io_binding()
        self._value = OrtValue.ortvalue_from_numpy
        self._cache: dict[str, OrtValue] = {name: self._value(zero) for name, zero in decoder.empty_cache.items()}
        self.length = 0

    def extend(self, tokens: NDArray[np.int64]) -> None:
        """Adds ``tokens`` [new] to the cache.

        Raises:
            RoclineError: the run failed, or the session is closed.
        """
        self._run(tokens, [])

    def append(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Adds ``tokens`` [new] to the cache and returns the logits [vocabulary] of the last one.

        Raises:
            ModelError: the logits are NaN or infinite.
            RoclineError: the run failed, or the session is closed.
        """
        logits: NDArray[np.float32] = self._run(tokens, ["logits"])[0].numpy()[0, -1].astype(np.float32)
        if not np.isfinite(logits.max()):
            raise ModelError(
                f"{self._decoder.session.folder}: the largest logit after token {self.length} is {logits.max()}, "
                "expected a finite number; the weights are damaged, or overflow in this dtype"
            )
        return logits

    def _run(self, tokens: NDArray[np.int64], wanted: list[str]) -> "list[OrtValue]":
        decoder, binding = self._decoder, self._binding
        session = decoder.session.ort
        end = self.length + len(tokens)
        ids = {
            "input_ids": tokens[None],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(self.length, end, dtype=np.int64)[None],
        }
        fed = {name: self._value(ids[name]) for name in decoder.token_inputs} | self._cache
        for name, value in fed.items():
            binding.bind_ortvalue_input(name, value)
        # Bound anew each time: an output keeps its buffer otherwise, and the next one is larger.
        binding.clear_binding_outputs()
        for name in wanted:
            binding.bind_output(name, "cpu")
        for name in decoder.present.values():
            binding.bind_output(name, decoder.device, decoder.device_id)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:
            raise RoclineError(f"{decoder.session.folder}: run failed at token {end}: {essence(error)}") from error
        outputs: list[OrtValue] = binding.get_outputs()
        self._cache = dict(zip(decoder.present, outputs[len(wanted) :], strict=True))
        self.length = end
        return outputs


def _empty(session: Session, spec: TensorSpec) -> NDArray[np.generic]:
    """Returns the zero-length cache for one past input: batch 1, the past dimension 0, the rest as the model says."""
    dtype = numpy_dtype(spec.dtype)
    sizes = [1 if axis == 0 else 0 if isinstance(size, str) and "past" in size else size
             for axis, size in enumerate(spec.shape)]  # fmt: skip
    if dtype is None or spec.dtype == "bfloat16" or 0 not in sizes or not all(isinstance(size, int) for size in sizes):
        raise ModelError(
            f"{session.folder}: input '{spec.name}' is {spec.dtype} {spec.shape}, expected a float32 or float16 cache "
            "(batch, heads, past_sequence_length, size)"
        )
    return np.zeros([int(size) for size in sizes], dtype)
