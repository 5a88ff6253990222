"""transformers' KV caches, from arrays by the names that an ONNX file has for them, and back."""

from typing import Any

import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

PAST, PRESENT = "past_key_values.", "present."


def growing(past: Arrays, infix: str = "") -> Any:
    """Returns a DynamicCache; like the traced graph it drops nothing, also where a layer has a sliding window.

    Args:
        past: ``past_key_values.N.key`` and ``.value`` [batch, heads, length, head].
        infix: between N and what follows.
    """
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer in sorted({int(name.removeprefix(PAST).split(".")[0]) for name in past}):
        key, value = (past[f"{PAST}{layer}{infix}.{part}"] for part in ("key", "value"))
        # An update with nothing would leave layers behind that some masks take for a cache in use.
        if key.shape[2]:
            cache.update(torch.from_numpy(key), torch.from_numpy(value), layer)
    return cache


def encoder_decoder(past: Arrays) -> Any:
    """Returns an EncoderDecoderCache; in the names of ``past``, ``.decoder`` or ``.encoder`` stands behind N."""
    from transformers import EncoderDecoderCache

    return EncoderDecoderCache(growing(past, ".decoder"), growing(past, ".encoder"))


def presents(cache: Any, infix: str = "") -> Arrays:
    """Returns ``present.N.key`` and ``.value`` of each layer that keeps any.

    They are copies: the next step's update may write in place. Of a cache with a part for cross-attention they are
    those of the other part.
    """
    found = {}
    for index, layer in enumerate(getattr(cache, "self_attention_cache", cache).layers):
        if layer.keys is not None:
            found[f"{PRESENT}{index}{infix}.key"] = layer.keys.numpy().copy()
            found[f"{PRESENT}{index}{infix}.value"] = layer.values.numpy().copy()
    return found
