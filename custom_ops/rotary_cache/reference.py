"""RotaryCache in NumPy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def _rms_norm(x: Array, weight: Array | None, epsilon: float) -> Array:
    if weight is None or weight.size == 0:
        return x
    normalised: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight
    return normalised


def _rotate(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """``x``: [batch, tokens, heads, head]; ``cos``, ``sin``: [batch, tokens, rotary_dim / 2]."""
    size = 2 * cos.shape[-1]
    first, second = (x[..., 0:size:2], x[..., 1:size:2]) if interleaved else np.split(x[..., :size], 2, axis=-1)
    c, s = cos[:, :, None, :], sin[:, :, None, :]
    pair = first * c - second * s, second * c + first * s
    rotated = np.stack(pair, axis=-1).reshape(x[..., :size].shape) if interleaved else np.concatenate(pair, axis=-1)
    return np.concatenate([rotated, x[..., size:]], axis=-1)


def reference(
    q: Array,
    k: Array,
    v: Array,
    past_k: Array,
    past_v: Array,
    position_ids: Array,
    cos: Array,
    sin: Array,
    heads: int,
    kv_heads: int,
    interleaved: int,
    rotary_dim: int,
    epsilon: float,
    q_norm: Array | None = None,
    k_norm: Array | None = None,
) -> dict[str, Array]:
    """Shapes as in ``spec.py``; ``rotary_dim`` is the tables' own, so it is not read."""
    (batch, tokens), head = position_ids.shape, past_k.shape[3]
    if k.ndim == 1:
        q, k, v = np.split(q, [heads * head, (heads + kv_heads) * head], axis=-1)
    q64, k64 = (x.astype(np.float64).reshape(batch, tokens, n, head) for x, n in ((q, heads), (k, kv_heads)))
    q64, k64 = _rms_norm(q64, q_norm, epsilon), _rms_norm(k64, k_norm, epsilon)
    if cos.size:
        rows = np.maximum(position_ids, 0)
        q64, k64 = (_rotate(x, cos[rows], sin[rows], bool(interleaved)) for x in (q64, k64))
    live = position_ids >= 0
    present_k, present_v = past_k.copy(), past_v.copy()
    for row, token in zip(*np.nonzero(live), strict=True):
        present_k[row, :, position_ids[row, token]] = k64[row, token]
        present_v[row, :, position_ids[row, token]] = v.reshape(batch, tokens, kv_heads, head)[row, token]
    return {
        "q_rotated": np.where(live[:, :, None], q64.reshape(q.shape), 0.0).astype(np.float32),
        "present_k": present_k,
        "present_v": present_v,
    }
