"""Decoding with a KV cache that each run returns longer than it got it: what Optimum's graphs have."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rocline.errors import RoclineError
from rocline.runtime.decoder import Decoder, Decoding, Interface, finite
from rocline.runtime.inputs import numpy_dtype
from rocline.runtime.ort_log import essence
from rocline.runtime.ort_session import run_options
from rocline.runtime.providers import resolve
from rocline.runtime.session import Session

if TYPE_CHECKING:
    from onnxruntime import IOBinding, OrtValue


class GrowingDecoder(Decoder):
    """A graph whose ``present.*`` is ``past_key_values.*`` [1, heads, past, size] and the new tokens behind it.

    ``input_ids`` [1, new], ``attention_mask`` [1, past + new] and ``position_ids`` [1, new] are int64; ``logits`` is
    [1, new, vocabulary].

    Args:
        session: the model; it stays the caller's to close.
        interface: what `Interface.read` found in it.
        device_id: the GPU that holds the cache, where the session runs on one.

    Raises:
        ModelError: the cache's inputs are not as `Interface.cache_shape` expects.
    """

    def __init__(self, session: Session, interface: Interface, device_id: int) -> None:
        self.session = session
        self.interface = interface
        self.device = resolve([session.report.active[0]], ())[0].device
        self.device_id = 0 if self.device == "cpu" else device_id
        self.empty_cache = {
            name: np.zeros(
                interface.cache_shape(name, 0, ("float32", "float16")), numpy_dtype(interface.inputs[name].dtype)
            )
            for name in interface.present
        }

    def start(self, room: int) -> "GrowingDecoding":
        """Returns a text of its own with nothing in its cache, which grows as it is filled."""
        return GrowingDecoding(self)


class GrowingDecoding(Decoding):
    """One text on its way through a `GrowingDecoder`. Its cache stays where it was computed, never copied to NumPy."""

    def __init__(self, decoder: GrowingDecoder) -> None:
        from onnxruntime import OrtValue

        super().__init__()
        self._decoder = decoder
        with decoder.session.held() as session:
            self._binding = session.io_binding()
        self._options = run_options(wait=True)
        self._value = OrtValue.ortvalue_from_numpy
        self._cache = self._nothing()

    def extend(self, tokens: Sequence[int]) -> None:
        """Adds ``tokens`` to the cache, as `Decoding.extend` says."""
        self._run(tokens, [])

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Adds ``tokens`` and returns the logits after them, as `Decoding.logits` says."""
        logits: NDArray[np.float32] = self._run(tokens, ["logits"])[0].numpy()[0, -1].astype(np.float32)
        return finite(logits, self._decoder.interface.folder, len(self.tokens))

    def rewind(self, length: int) -> None:
        """Forgets all tokens if ``length`` is not all of them: what was computed cannot be cut."""
        if length < len(self.tokens):
            self._cache = self._nothing()
            self.tokens.clear()

    def close(self) -> None:
        """Frees the cache; a second call does nothing."""
        with self.turn:
            self._cache.clear()
            self._binding = None

    def _nothing(self) -> "dict[str, OrtValue]":
        return {name: self._value(zero) for name, zero in self._decoder.empty_cache.items()}

    def _run(self, tokens: Sequence[int], wanted: list[str]) -> "list[OrtValue]":
        with self.turn:
            decoder, binding = self._decoder, self._binding
            if binding is None:
                raise RoclineError(f"{decoder.interface.folder}: the text's cache is closed")
            interface = decoder.interface
            start = len(self.tokens)
            end = start + len(tokens)
            ids = {
                "input_ids": np.array([tokens], np.int64),
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(start, end, dtype=np.int64)[None],
            }
            fed = {name: self._value(ids[name]) for name in interface.tokens} | self._cache
            outputs = self._run_bound(binding, fed, wanted, end)
            self._cache = dict(zip(interface.present, outputs[len(wanted) :], strict=True))
            self.tokens += tokens
            return outputs

    def _run_bound(
        self, binding: "IOBinding", fed: "dict[str, OrtValue]", wanted: list[str], end: int
    ) -> "list[OrtValue]":
        """Returns what is wanted, and the cache, which stays where it is computed."""
        decoder = self._decoder
        # A binding looks into its session, which another thread may close between two runs.
        with decoder.session.held() as session:
            for name, value in fed.items():
                binding.bind_ortvalue_input(name, value)
            # Bound anew each time: an output keeps its buffer otherwise, and the next one is larger.
            binding.clear_binding_outputs()
            for name in wanted:
                binding.bind_output(name, "cpu")
            for name in decoder.interface.present.values():
                binding.bind_output(name, decoder.device, decoder.device_id)
            try:
                session.run_with_iobinding(binding, self._options)
            except Exception as error:
                raise RoclineError(
                    f"{decoder.interface.folder}: run failed at token {end}: {essence(error)}"
                ) from error
            outputs: list[OrtValue] = binding.get_outputs()
            return outputs
