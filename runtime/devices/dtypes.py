"""Shapes and dtypes that a buffer can have."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from rocline.errors import DeviceError

DType = np.dtype[Any]

BFLOAT16: DType = np.dtype(ml_dtypes.bfloat16)
"""bfloat16, which NumPy lacks."""


def checked_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    """Returns a shape as a tuple.

    Raises:
        DeviceError: a size is negative or no whole number.
    """
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    try:
        made = tuple(size.__index__() for size in sizes)
    except AttributeError:
        made = (-1,)
    if any(size < 0 for size in made):
        raise DeviceError(f"shape {sizes}: expected whole numbers from 0")
    return made


def checked_dtype(dtype: Any) -> DType:
    """Returns NumPy's dtype for ``dtype``, which may be the name ``bfloat16`` too.

    Raises:
        DeviceError: there is none, or its elements are no plain numbers.
    """
    if isinstance(dtype, str) and dtype == "bfloat16":
        return BFLOAT16
    try:
        made: DType = np.dtype(dtype)
    except TypeError:
        raise DeviceError(f"dtype {dtype!r}: unknown") from None
    if made != BFLOAT16 and made.kind not in "biufc":
        raise DeviceError(f"dtype {made}: a buffer holds numbers only")
    return made
