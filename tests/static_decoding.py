"""Decodes in a graph with a static cache, in every way that rows can come, beside PyTorch's own numbers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rocline

Arrays = dict[str, Any]

# More positions than a page of any kernel's cache holds; rows that end far apart.
PROMPTS = (131, 9, 70)
DECODED = 3
CAPACITY = 160
_CHUNK = 48


def rows(vocabulary: int) -> list[Any]:
    """Returns the rows of token ids, prompt and continuation."""
    generator = np.random.default_rng(3)
    return [generator.integers(4, vocabulary, length + DECODED) for length in PROMPTS]


def expected(model: Any) -> list[Any]:
    """Returns PyTorch's logits of each row's tokens: one forward a row, no cache, no padding, plain attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            return [
                model(torch.from_numpy(row)[None], use_cache=False).logits[0].numpy()
                for row in rows(model.config.vocab_size)
            ]
    finally:
        model.set_attn_implementation(before)


def deviation(
    model: Any, run: Callable[[Arrays], Arrays], caches: dict[str, tuple[int, int]], dtype: str = "float32"
) -> dict[str, float]:
    """Returns how far the logits of a graph are from PyTorch's at most, for each way of feeding the same rows.

    Args:
        model: the transformers model.
        run: takes the graph's inputs, gives its outputs, both by name.
        caches: (kv_heads, head) of each cache input by name.
        dtype: of the caches.
    """
    reference = expected(model)
    found = {}
    for way, widths in (("prefill", [max(PROMPTS)]), ("chunked prefill", [_CHUNK] * -(-max(PROMPTS) // _CHUNK))):
        # What was left in a buffer must not count.
        past = {
            name: np.full((len(PROMPTS), heads, CAPACITY, size), 1e3, dtype) for name, (heads, size) in caches.items()
        }
        for stage, ids, positions in _feeds(rows(model.config.vocab_size), widths):
            outputs = run({"input_ids": ids, "position_ids": positions, **past})
            past = {name: outputs[name.replace("past_key_values", "present")] for name in caches}
            label = way if stage == "prefill" else f"decode after {way}"
            for row, place in enumerate(positions.max(1)):
                if place >= 0:
                    error = float(np.abs(outputs["logits"][row, 0].astype(np.float32) - reference[row][place]).max())
                    found[label] = max(found.get(label, 0.0), error)
    return found


def session_deviation(model: Any, folder: Path) -> dict[str, float]:
    """Returns the same of a model folder, run on the CPU."""
    with rocline.Session(folder, providers=["CPUExecutionProvider"]) as session:
        past = [value for value in session.inputs if value.name.startswith("past_key_values")]
        caches = {value.name: (value.shape[1], value.shape[3]) for value in past}
        return deviation(model, session.run, caches, past[0].dtype)


def _feeds(tokens: list[Any], widths: list[int]) -> Iterator[tuple[str, Any, Any]]:
    """Yields (stage, input_ids, position_ids): prompts in steps of the widths, padded, then one token a step."""
    start = 0
    for step, width in enumerate(widths):
        ids = np.zeros((len(tokens), width), np.int64)
        positions = np.full((len(tokens), width), -1, np.int64)
        for row, (sequence, length) in enumerate(zip(tokens, PROMPTS, strict=True)):
            taken = np.arange(start, min(length, start + width))
            # Padding on either side.
            at = slice(width - len(taken), width) if (row + step) % 2 else slice(0, len(taken))
            ids[row, at], positions[row, at] = sequence[taken], taken
        start += width
        yield "prefill", ids, positions
    for step in range(DECODED):
        places = np.array(PROMPTS) + step
        ids = np.array([sequence[place] for sequence, place in zip(tokens, places, strict=True)])
        yield "decode", ids[:, None], places[:, None]
