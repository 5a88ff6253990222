"""Shapes and dtypes that a buffer can have."""

import operator
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from rocline.errors import DeviceError

DType = np.dtype[Any]

BFLOAT16: DType = np.dtype(ml_dtypes.bfloat16)
"""bfloat16, which NumPy lacks."""

# NumPy's long double and its complex twin.
_PADDED = "gG"


def checked_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    """Returns a shape as a tuple.

    Raises:
        DeviceError: a size is negative or no whole number.
    """
    try:
        made = tuple(map(operator.index, shape if hasattr(shape, "__iter__") else (shape,)))
    except TypeError:
        made = (-1,)
    if any(size < 0 for size in made):
        raise DeviceError(f"shape {shape!r}: expected whole numbers from 0")
    return made


def checked_dtype(dtype: Any) -> DType:
    """Returns NumPy's dtype for ``dtype``, which may be the name ``bfloat16`` too.

    Raises:
        DeviceError: there is none, or its elements are no plain numbers in the machine's byte order.
    """
    if isinstance(dtype, str) and dtype == "bfloat16":
        return BFLOAT16
    try:
        made: DType = np.dtype(dtype)
    except TypeError:
        raise DeviceError(f"dtype {dtype!r}: unknown") from None
    if made != BFLOAT16 and made.kind not in "biufc":
        raise DeviceError(f"dtype {made}: a buffer holds numbers only")
    # What reads the memory, on a GPU or through DLPack, knows the machine's byte order and IEEE's formats.
    if not made.isnative or made.char in _PADDED:
        raise DeviceError(f"dtype {made.str}: a buffer holds IEEE formats in the machine's byte order only")
    return made
