"""SkipRmsNorm in NumPy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def reference(x: Array, weight: Array, skip: Array | None = None, *, epsilon: float) -> dict[str, Array]:
    """``x``, ``skip``: [..., hidden]; ``weight``: [hidden]; all float32."""
    total = x if skip is None else x + skip
    wide = total.astype(np.float64)
    mean = np.sum(wide**2, axis=-1, keepdims=True) / max(x.shape[-1], 1)
    return {"y": (wide / np.sqrt(mean + epsilon) * weight).astype(np.float32), "sum": total}
