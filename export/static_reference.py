"""What PyTorch says about a decoder whose KV cache has a fixed size: prefill, a chunk of one, and a decode step.

Rows have their own lengths: in the graph a row is what its ``position_ids`` say, with -1 for padding. PyTorch runs each
batch whole and without a cache, rows padded at their end, where no token before them sees it; every step is a part of
that run. So neither transformers' cache nor the export's is trusted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rocline.export.torch_cache import PAST, PRESENT

Array = npt.NDArray[Any]

# What the inputs of a sampling head are given: it is not compared, since a near tie may fall either way.
GREEDY = {
    "temperature": np.zeros(1, np.float32),
    "top_k": np.zeros(1, np.int32),
    "top_p": np.ones(1, np.float32),
    "min_p": np.zeros(1, np.float32),
    "repetition_penalty": np.ones(1, np.float32),
}
# Slots that stay free behind the longest row: they must stay as they are.
_FREE = 3


@dataclass(frozen=True)
class Step:
    """One run of the graph.

    Attributes:
        name: ``prefill``, ``chunked prefill`` or ``decode step``.
        arrays: what it is fed, by the graph's names; a graph without a sampling head takes fewer. Slots of the cache
            that hold no token are NaN.
        expected: ``logits`` and the caches after the run, by the graph's names.
        live: [batch, 1, capacity], where the cache holds a token after the run.
        tokens: [batch, tokens], where those fed are no padding.
        run: runs PyTorch on what the batch holds after this step.
    """

    name: str
    arrays: dict[str, Array]
    expected: dict[str, Array]
    live: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.bool_]
    run: Callable[[], Any]


def steps(model: Any, input_ids: Array, attention_mask: Array, most: int | None) -> Iterator[Step]:
    """Yields a prefill of the batch, the second half of one in chunks, and a decode step.

    Args:
        model: the torch model, in fp32.
        input_ids: int64 [batch, sequence].
        attention_mask: int64 [batch, sequence]; 0 is padding, on either side.
        most: the largest capacity that the graph's rotary tables allow; None for any.
    """
    rows = [ids[mask.astype(bool)] for ids, mask in zip(input_ids, attention_mask, strict=True)]
    if most is not None:
        rows = [row[: most - 1] for row in rows]
    written = _run(model, rows)
    grown = [np.append(row, logits[len(row) - 1].argmax()) for row, logits in zip(rows, written.logits, strict=True)]
    whole = _run(model, grown)
    capacity = max(map(len, grown)) + _FREE
    capacity = capacity if most is None else min(capacity, most)
    lengths = np.array([len(row) for row in rows])
    for name, first, last in (
        ("prefill", np.zeros_like(lengths), lengths),
        ("chunked prefill", lengths // 2, lengths),
        ("decode step", lengths, lengths + 1),
    ):
        yield _step(name, model, grown, whole, first, last, capacity)


@dataclass(frozen=True)
class _Whole:
    """A run without a cache: logits [batch, sequence, vocabulary], and the layers' keys and values."""

    logits: Array
    layers: list[tuple[Array, Array]]


def _run(model: Any, rows: list[Array]) -> _Whole:
    output = _call(model, rows)
    layers = [(layer.keys.numpy(), layer.values.numpy()) for layer in output.past_key_values.layers]
    return _Whole(output.logits.numpy(), layers)


def _call(model: Any, rows: list[Array]) -> Any:
    import torch
    from transformers import DynamicCache

    ids, mask = _padded(rows, 0), _padded([np.ones_like(row) for row in rows], 0)
    # A cache made without the config keeps every token, also of layers with a sliding window.
    arrays = {"input_ids": ids, "attention_mask": mask}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return model(**tensors, past_key_values=DynamicCache(), use_cache=True)


def _padded(rows: list[Array], value: int) -> Array:
    padded = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for to, row in zip(padded, rows, strict=True):
        to[: len(row)] = row
    return padded


def _step(name: str, model: Any, rows: list[Array], whole: _Whole, first: Array, last: Array, capacity: int) -> Step:
    """The run that takes the tokens ``first[i]`` to ``last[i]`` of each row i, those before them in the cache."""
    chunks = [row[start:stop] for row, start, stop in zip(rows, first, last, strict=True)]
    places = [np.arange(start, stop) for start, stop in zip(first, last, strict=True)]
    position_ids = _padded(places, -1)
    arrays = {"input_ids": _padded(chunks, 0), "position_ids": position_ids, **GREEDY}
    arrays["seed"] = np.zeros((len(rows), 2), np.int64)
    expected = {"logits": whole.logits[np.arange(len(rows)), last - 1][:, None]}
    slots = np.arange(capacity)
    for layer, pair in enumerate(whole.layers):
        for part, computed in zip(("key", "value"), pair, strict=True):
            arrays[f"{PAST}{layer}.{part}"] = _cache(computed, first, capacity)
            expected[f"{PRESENT}{layer}.{part}"] = _cache(computed, last, capacity)
    ended = [row[:stop] for row, stop in zip(rows, last, strict=True)]
    return Step(
        name=name,
        arrays=arrays,
        expected=expected,
        live=(slots < last[:, None])[:, None],
        tokens=position_ids >= 0,
        run=lambda: _call(model, ended),
    )


def _cache(computed: Array, lengths: Array, capacity: int) -> Array:
    """A buffer [batch, kv_heads, capacity, head] with the first ``lengths[i]`` tokens of row i; the rest is NaN."""
    batch, heads, _, head = computed.shape
    cache = np.full((batch, heads, capacity, head), np.nan, np.float32)
    for row, length in enumerate(lengths):
        cache[row, :, :length] = computed[row, :, :length]
    return cache
