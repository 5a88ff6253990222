"""bfloat16 arrays in and out of ONNX Runtime, whose Python API knows no such NumPy dtype; ours is ml_dtypes'."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime

Array = np.ndarray[Any, Any]

_ONNX_BFLOAT16 = 16


def run(session: "onnxruntime.InferenceSession", names: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
    """Runs ``session`` where an input or output is bfloat16; one array for each of ``names``."""
    feeds = {name: _to_value(array) for name, array in inputs.items()}
    return [_to_array(value) for value in session.run_with_ort_values(list(names), feeds)]


def _to_value(array: Array) -> Any:
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype == ml_dtypes.bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _ONNX_BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _to_array(value: Any) -> Array:
    if value.element_type() != _ONNX_BFLOAT16:
        array: Array = value.numpy()
        return array
    shape = tuple(value.shape())
    result = np.empty(shape, ml_dtypes.bfloat16)
    ctypes.memmove(result.ctypes.data, value.data_ptr(), result.nbytes)
    return result
