"""Decoding in a KV cache of fixed size: one buffer a layer, read as past and written in place as present."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rocline.errors import InputError, ModelError, RoclineError
from rocline.runtime.decoder import Decoder, Decoding, Interface, finite
from rocline.runtime.inputs import numpy_dtype
from rocline.runtime.ort_log import essence
from rocline.runtime.sampling import Sampler
from rocline.runtime.sampling_head import SamplingHead
from rocline.runtime.session import Session

PAGE = 256
"""Tokens by which a cache is sized where no capacity is given."""


class StaticDecoder(Decoder):
    """A graph whose ``present.*`` has the shape of ``past_key_values.*`` [1, heads, capacity, size].

    ``input_ids`` and ``position_ids`` are int64 [1, new]: the token at position p goes to slot p of the cache and sees
    the slots up to its own, whatever the others hold. ``logits`` is [1, 1, vocabulary], of the last token. A graph with
    a sampling head has SampleToken's inputs too, and gives ``next_token`` [1].

    Args:
        session: the model; it stays the caller's to close.
        interface: what `Interface.read` found in it.
        capacity: tokens that each text's cache takes; None: as many as it asks for, in whole pages of `PAGE`.
        context: most tokens that the model takes; None if it names no limit.

    Raises:
        ModelError: the cache's inputs are not as `Interface.cache_shape` expects, or the vocabulary is not fixed.
    """

    # The head runs on the last token only: the larger the faster, but Ctrl-C waits for the end of a run.
    prefill_chunk = 256

    def __init__(self, session: Session, interface: Interface, capacity: int | None, context: int | None) -> None:
        self.session = session
        self.interface = interface
        self._capacity, self._context = capacity, context
        logits = interface.outputs["logits"]
        vocabulary = logits.shape[-1]
        if not isinstance(vocabulary, int) or logits.dtype not in ("float32", "float16"):
            raise ModelError(
                f"{interface.folder}: output 'logits' is {logits.dtype} {logits.shape}, expected float32 or float16 "
                "(batch, 1, vocabulary) with the vocabulary fixed"
            )
        self.vocabulary = vocabulary
        for name in interface.present:
            interface.cache_shape(name, 0)

    def start(self, room: int) -> "StaticDecoding":
        """Returns a text of its own, with a cache of the decoder's capacity or of pages for ``room`` tokens."""
        capacity = self._capacity or -(-room // PAGE) * PAGE
        if self._context is not None:
            capacity = min(capacity, self._context)
        return StaticDecoding(self, capacity)


class StaticDecoding(Decoding):
    """One text on its way through a `StaticDecoder`.

    Everything is bound once for all runs of as many tokens; a decode step writes two numbers and reads the output.
    """

    room: int

    def __init__(self, decoder: StaticDecoder, capacity: int) -> None:
        super().__init__()
        interface = decoder.interface
        self.room = capacity
        self._decoder = decoder
        self._cache = {
            name: np.zeros(interface.cache_shape(name, capacity), numpy_dtype(interface.inputs[name].dtype))
            for name in interface.present
        }
        self._head = SamplingHead(interface)
        outputs: dict[str, NDArray[Any]] = {
            "logits": np.zeros((1, 1, decoder.vocabulary), numpy_dtype(interface.outputs["logits"].dtype))
        }
        if interface.head:
            outputs["next_token"] = np.zeros(1, np.int64)
        self._outputs = outputs
        self._bound: tuple[int, str] | None = None

    def extend(self, tokens: Sequence[int]) -> None:
        """Adds ``tokens`` to the cache, as `Decoding.extend` says."""
        self._run(tokens, "next_token" if self._decoder.interface.head else "logits")

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Adds ``tokens`` and returns the logits after them, as `Decoding.logits` says, until the next run."""
        self._run(tokens, "logits")
        logits = self._outputs["logits"][0, 0].astype(np.float32, copy=False)
        return finite(logits, self._decoder.interface.folder, len(self.tokens))

    def choose(self, tokens: Sequence[int], sampler: Sampler) -> int:
        """Adds ``tokens`` and returns the next one: the sampling head's where the graph has one and it can serve."""
        if not self._head.serves(sampler.sampling):
            return super().choose(tokens, sampler)
        self._head.prepare(sampler, len(self.tokens) + len(tokens))
        self._run(tokens, "next_token")
        return self._head.checked(int(self._outputs["next_token"][0]), len(self.tokens))

    def rewind(self, length: int) -> None:
        """Forgets the tokens from ``length`` on; slots above the last position are never seen, whatever they hold."""
        del self.tokens[length:]

    def close(self) -> None:
        """Frees the cache; a second call does nothing."""
        self._binding = self._bound = None
        self._cache.clear()

    def _run(self, tokens: Sequence[int], output: str) -> None:
        session, folder = self._decoder.session.ort, self._decoder.interface.folder
        start, count = len(self.tokens), len(tokens)
        end = start + count
        if end > self.room:
            raise InputError(f"{folder}: {end} tokens, expected at most the cache's {self.room}")
        if self._bound != (count, output):
            self._bind(count, output)
        self._ids[0] = tokens
        self._positions[0] = start if count == 1 else np.arange(start, end)
        try:
            session.run_with_iobinding(self._binding)
        except Exception as error:
            message = essence(error)
            failure = RoclineError(f"{folder}: run failed at token {end}: {message}")
            raise self._head.explain(message, end) or failure from error
        self.tokens += tokens

    def _bind(self, count: int, output: str) -> None:
        """Binds every input and output for runs of ``count`` tokens that give ``output``."""
        from onnxruntime import OrtValue

        ids, positions = np.empty((2, 1, count), np.int64)
        fed = {"input_ids": ids, "position_ids": positions, **self._cache, **self._head.inputs}
        binding = self._decoder.session.ort.io_binding()
        # An OrtValue is the array's own memory, and keeps neither it nor itself alive in the binding.
        for name, array in fed.items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
        binding.bind_ortvalue_output(output, OrtValue.ortvalue_from_numpy(self._outputs[output]))
        for past, present in self._decoder.interface.present.items():
            binding.bind_ortvalue_output(present, OrtValue.ortvalue_from_numpy(self._cache[past]))
        self._ids, self._positions = ids, positions
        self._binding, self._bound = binding, (count, output)
