"""PoolNormalize in NumPy, in float64."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def reference(x: Array, attention_mask: Array, mode: str, normalize: int) -> dict[str, Array]:
    """``x``: float32 [batch, tokens, hidden]; ``attention_mask``: int64 [batch, tokens]; see spec.py."""
    batch, tokens, hidden = x.shape
    seen = attention_mask != 0
    y = np.zeros((batch, hidden))
    for row in range(batch):
        places = np.flatnonzero(seen[row])
        if mode == "mean":
            y[row] = x[row, places].astype(np.float64).sum(axis=0) / max(places.size, 1e-9)
        elif mode == "last" and places.size:
            y[row] = x[row, places[-1]]
        elif mode == "cls" and tokens:
            y[row] = x[row, 0]
    if normalize:
        y /= np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-12)
    return {"y": y.astype(np.float32)}
