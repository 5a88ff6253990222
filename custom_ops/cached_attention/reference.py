"""CachedAttention in NumPy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def visible(position_ids: Array, queries: int, keys: int, causal: int, window: int) -> Array:
    """[batch, queries, keys] bool: which query sees which key."""
    key = np.arange(keys)
    if causal:
        position = position_ids[:, :, None]
        seen = (key <= position) & (position >= 0)
        return seen & (key > position - window) if window else seen
    shown = np.broadcast_to((position_ids >= 0)[:, None, :], (position_ids.shape[0], queries, keys))
    return shown & (np.abs(np.arange(queries)[:, None] - key) < window) if window else shown


def reference(
    q: Array,
    present_k: Array,
    present_v: Array,
    position_ids: Array,
    heads: int,
    kv_heads: int,
    scale: float,
    window: int,
    soft_cap: float,
    causal: int,
    bias: Array | None = None,
) -> dict[str, Array]:
    """Shapes as in ``spec.py``; ``workspace`` is left out."""
    batch, queries, head = q.shape[0], q.shape[1], present_k.shape[3]
    keys = present_k.shape[2]
    seen = visible(position_ids, queries, keys, causal, window)
    y = np.zeros((batch, queries, heads, head))
    for row, query, h in np.ndindex(batch, queries, heads):
        at = np.nonzero(seen[row, query])[0]
        if not at.size:
            continue
        k, v = (x[row, h * kv_heads // heads, at].astype(np.float64) for x in (present_k, present_v))
        score = k @ q[row, query, h * head : (h + 1) * head].astype(np.float64) * (scale or head**-0.5)
        if soft_cap:
            score = soft_cap * np.tanh(score / soft_cap)
        if bias is not None and bias.size:
            score = score + np.broadcast_to(bias, (batch, heads, queries, keys))[row, h, query, at]
        if score.max() > -np.inf:
            weight = np.exp(score - score.max())
            y[row, query, h] = weight @ v / weight.sum()
    return {"y": y.reshape(q.shape).astype(np.float32)}
