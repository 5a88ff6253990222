"""Shape inference of the operators where shapes are not known: what is missing must not be taken for numbers."""

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from rocline import custom_ops


def session(text):
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18, "rocline": 1]> {text}')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    custom_ops.register(options)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_a_size_without_a_name_is_no_number(dtype):
    """NonZero's second axis has no name; -1 in its place would go on through Shape into the Reshape."""
    opened = session(
        f"""
        graph (float[2, 3] x, {dtype}[n] weight) => ({dtype}[a, b] z)
        {{
            places = NonZero(x)
            numbers = Cast <to = {1 if dtype == "float" else 10}> (places)
            y = rocline.SkipRmsNorm(numbers, weight)
            shape = Shape(y)
            one = Constant <value_int = 1> ()
            size = Gather(shape, one)
            zero = Constant <value_ints = [0]> ()
            sizes = Unsqueeze(size, zero)
            rest = Constant <value_ints = [-1]> ()
            target = Concat <axis = 0> (sizes, rest)
            z = Reshape(y, target)
        }}"""
    )
    x = np.ones((2, 3), np.float32)
    weight = np.ones(6, np.float32 if dtype == "float" else np.float16)
    assert opened.run(None, {"x": x, "weight": weight})[0].shape == (6, 2)


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_an_unknown_rank_is_no_scalar(dtype):
    """Reshape to a shape of unknown length has no rank; as a scalar it could not be multiplied by a matrix."""
    opened = session(
        f"""
        graph ({dtype}[n] x, int64[r] target, {dtype}[4] weight, {dtype}[4, 2] matrix) => ({dtype}[b, 2] z)
        {{
            rows = Reshape(x, target)
            y = rocline.SkipRmsNorm(rows, weight)
            z = MatMul(y, matrix)
        }}"""
    )
    kind = np.float32 if dtype == "float" else np.float16
    feeds = {"x": np.ones(12, kind), "weight": np.ones(4, kind), "matrix": np.ones((4, 2), kind)}
    assert opened.run(None, {**feeds, "target": np.array([3, 4])})[0].shape == (3, 2)
