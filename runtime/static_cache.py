"""Decoding in a KV cache of fixed size: one buffer a layer, read as past and written in place as present."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rocline.errors import DeviceMemoryError, InputError, ModelError, RoclineError
from rocline.runtime.decoder import FLOATS, Decoder, Decoding, Interface, finite
from rocline.runtime.devices import Buffer
from rocline.runtime.io_binding import Binding
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

    def __init__(self, session: Session, interface: Interface, capacity: int | None, context: int | None) -> None:
        self.session = session
        self.interface = interface
        self._capacity, self._context = capacity, context
        logits = interface.outputs["logits"]
        vocabulary = logits.shape[-1]
        if not isinstance(vocabulary, int) or logits.dtype not in FLOATS:
            raise ModelError(
                f"{interface.folder}: output 'logits' is {logits.dtype} {logits.shape}, expected {' or '.join(FLOATS)} "
                "(batch, 1, vocabulary) with the vocabulary fixed"
            )
        self.vocabulary = vocabulary
        for name in interface.present:
            interface.cache_shape(name, 0, FLOATS)

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
        self.room = capacity
        self._decoder, self._session = decoder, decoder.session
        self._device, self._stream = decoder.session.device, decoder.session.stream
        self._bindings: dict[tuple[int, str], Binding] = {}
        self._cache = self._allocate()
        self._head = SamplingHead(decoder.interface, self._device, self._stream)

    def extend(self, tokens: Sequence[int]) -> None:
        """Adds ``tokens`` to the cache, as `Decoding.extend` says."""
        self._run(tokens, "next_token" if self._decoder.interface.head else "logits")

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Adds ``tokens`` and returns the logits after them, as `Decoding.logits` says, until the next run."""
        logits = self._run(tokens, "logits")[0, 0].astype(np.float32, copy=False)
        return finite(logits, self._decoder.interface.folder, len(self.tokens))

    def choose(self, tokens: Sequence[int], sampler: Sampler) -> int:
        """Adds ``tokens`` and returns the next one: the sampling head's where the graph has one and it can serve."""
        if not self._head.serves(sampler.sampling):
            return super().choose(tokens, sampler)
        self._head.prepare(sampler, len(self.tokens) + len(tokens))
        return self._head.checked(int(self._run(tokens, "next_token")[0]), len(self.tokens))

    def rewind(self, length: int) -> None:
        """Forgets the tokens from ``length`` on; slots above the last position are never seen, whatever they hold."""
        del self.tokens[length:]

    def close(self) -> None:
        """Frees the cache; a second call does nothing."""
        with self.turn:
            for binding in self._bindings.values():
                binding.close()
            for buffer in self._cache.values():
                buffer.close()
            self._head.close()

    def _run(self, tokens: Sequence[int], output: str) -> NDArray[Any]:
        """Adds ``tokens`` and returns ``output``, which the next run may overwrite."""
        folder, start, count = self._decoder.interface.folder, len(self.tokens), len(tokens)
        end = start + count
        if end > self.room:
            raise InputError(f"{folder}: {end} tokens, expected at most the cache's {self.room}")
        with self.turn:
            bound = self._bindings.get((count, output)) or self._bind(count, output)
            bound.inputs["input_ids"].copy_from(np.array([tokens], np.int64), stream=self._stream)
            bound.inputs["position_ids"].copy_from(np.arange(start, end)[None], stream=self._stream)
            try:
                bound.run()
            except RoclineError as error:
                message = f"{error}, at token {end}"
                raise self._head.explain(message, end) or RoclineError(message) from error
            buffer = bound.outputs[output]
            result = buffer.array if self._device.kind == "cpu" else buffer.numpy()
            self.tokens += tokens
            return result

    def _bind(self, count: int, output: str) -> Binding:
        """Binds everything for runs of ``count`` tokens that give ``output``."""
        # A decode step comes again and again, a prompt's chunk or the rest of it does not.
        for key in [key for key in self._bindings if key[0] != 1]:
            self._bindings.pop(key).close()
        decoder, tokens = self._decoder, (1, count)
        inputs = {"input_ids": tokens, "position_ids": tokens, **self._cache, **self._head.inputs}
        present = {name: self._cache[past] for past, name in decoder.interface.present.items()}
        shape = (1,) if output == "next_token" else (1, 1, decoder.vocabulary)
        binding = self._session.bind(inputs, {output: shape, **present}, capture=None if count == 1 else False)
        self._bindings[count, output] = binding
        return binding

    def _allocate(self) -> dict[str, Buffer]:
        interface = self._decoder.interface
        shapes = {name: interface.cache_shape(name, self.room, FLOATS) for name in interface.present}
        cache: dict[str, Buffer] = {}
        try:
            for name, shape in shapes.items():
                cache[name] = self._device.allocate(shape, interface.inputs[name].dtype, stream=self._stream)
        except DeviceMemoryError as error:
            for buffer in cache.values():
                buffer.close()
            raise DeviceMemoryError(f"a KV cache of {self.room} tokens: {error}; choose a smaller capacity") from None
        return cache
