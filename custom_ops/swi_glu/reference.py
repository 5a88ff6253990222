"""SwiGlu in NumPy."""

from collections.abc import Callable
from math import erf, pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_GATES: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(erf, otypes=[float])(x / sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2,
}


def reference(gate: Array, up: Array | None = None, *, activation: str) -> dict[str, Array]:
    """``gate``, ``up``: [..., columns]; or ``gate`` alone: [..., 2 columns]; float32."""
    if up is None:
        gate, up = np.split(gate, 2, axis=-1)
    return {"y": (_GATES[activation](gate.astype(np.float64)) * up).astype(np.float32)}
