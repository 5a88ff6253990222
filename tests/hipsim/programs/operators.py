"""Runs operators one by one on ONNX Runtime's ROCm and CPU providers, and prints, as JSON, how far they are apart."""

import itertools
import json
from collections.abc import Iterator

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

PROVIDERS = ["ROCMExecutionProvider", "CPUExecutionProvider"]
MICROSOFT = {"domain": "com.microsoft"}
random = np.random.default_rng(0)


def make(name: str, operator: str, outputs: int, arrays: dict[str, np.ndarray], attributes: dict[str, object]):
    """A model of one node; inputs that start with "constant" are stored in it."""
    names = [f"y{number}" for number in range(outputs)]
    node = helper.make_node(operator, list(arrays), names, **attributes)
    inputs = [
        helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for key, value in arrays.items()
        if not key.startswith("constant")
    ]
    constants = [numpy_helper.from_array(value, key) for key, value in arrays.items() if key.startswith("constant")]
    results = [helper.make_tensor_value_info(key, TensorProto.UNDEFINED, None) for key in names]
    for result in results:
        result.ClearField("type")
    graph = helper.make_graph([node], name, inputs, results, constants)
    versions = [helper.make_opsetid("", 20 if operator == "Gelu" else 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=9).SerializeToString()


def run(model: bytes, feeds: dict[str, np.ndarray], provider: str) -> tuple[list[np.ndarray], bool]:
    """The outputs, and whether no node that computes fell back to the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if provider != PROVIDERS[1]:
        # A node that must fall back to the CPU is an error.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = onnxruntime.InferenceSession(model, options, providers=[provider])
    return session.run(None, feeds), session.get_providers()[0] == provider


def normal(*shape: int, dtype: str) -> np.ndarray:
    return np.asarray(random.standard_normal(shape), dtype)


def positive(*shape: int, dtype: str) -> np.ndarray:
    return np.asarray(np.abs(random.standard_normal(shape)) + 0.1, dtype)


def elementwise(dtype: str) -> Iterator[tuple[object, ...]]:
    unary = "Abs Ceil Cos Erf Exp Floor Log Neg Reciprocal Relu Round Sigmoid Sign Sin Softplus Sqrt Tanh"
    for operator in unary.split(" "):
        yield operator, {"x": positive(3, 7, dtype=dtype)}, {}
    shapes = [
        *(((4, 8), (4, 8)), ((4, 8), ()), ((), (4, 8)), ((2, 3, 4), (3, 1)), ((2, 3, 4), (1, 3, 1))),
        *(((2, 1, 4), (3, 1)), ((8,), (2, 4, 8)), ((2, 5, 3, 3), (1, 5, 1, 1)), ((1, 5, 3, 3), (1, 5, 1, 1))),
    ]
    binary = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Less", "Equal")
    for operator, (left, right) in itertools.product(binary, shapes):
        yield operator, {"a": positive(*left, dtype=dtype), "b": positive(*right, dtype=dtype)}, {}
    chosen = [
        *(((4, 5), (4, 5), (4, 5)), ((1,), (4, 5), (4, 5)), ((4, 1), (4, 5), ()), ((2, 1, 5), (1, 3, 5), (2, 3, 1))),
    ]
    for condition, left, right in chosen:
        arrays = {
            "c": random.random(condition) > 0.5,
            "a": normal(*left, dtype=dtype),
            "b": normal(*right, dtype=dtype),
        }
        yield "Where", arrays, {}
    yield "Sum", {name: normal(3, 4, dtype=dtype) for name in "abc"}, {}
    yield "Clip", {"x": normal(3, 4, dtype=dtype), "constant": np.array(0, dtype)}, {}
    for operator in ("FastGelu", "BiasGelu"):
        for width in (64, 65):
            yield operator, {"x": normal(2, 3, width, dtype=dtype), "constant": normal(width, dtype=dtype)}, MICROSOFT
    for operator in ("Gelu", "QuickGelu"):
        yield operator, {"x": normal(2, 3, 64, dtype=dtype)}, MICROSOFT
    for approximate in ("none", "tanh"):
        yield "Gelu", {"x": normal(2, 3, 64, dtype=dtype)}, {"approximate": approximate}


def rows(dtype: str) -> Iterator[tuple[object, ...]]:
    for operator in ("Softmax", "LogSoftmax"):
        for shape, axis in (((2, 3, 16), -1), ((2, 3, 16), 1), ((2, 1500), -1), ((2, 40000), -1), ((40, 3), 0)):
            yield operator, {"x": normal(*shape, dtype=dtype)}, {"axis": axis}
    reductions = "ReduceMean ReduceMax ReduceMin ReduceL2 ReduceSumSquare ReduceProd"
    for operator, axes in itertools.product(reductions.split(), ([-1], [0], [1], [0, 2], [0, 1, 2])):
        yield operator, {"x": normal(2, 3, 16, dtype=dtype)}, {"axes": axes}
        yield operator, {"x": normal(2, 3, 16, dtype=dtype)}, {"axes": axes, "keepdims": 0}
    for axes in ([-1], [0], [1], [0, 2]):
        yield "ReduceSum", {"x": normal(2, 3, 16, dtype=dtype), "constant": np.array(axes)}, {}
    for width in (16, 64, 384, 768, 1000, 5000):
        x, parameters = normal(2, 3, width, dtype=dtype), {f"constant{i}": normal(width, dtype=dtype) for i in range(3)}
        yield "LayerNormalization", {"x": x, **dict(list(parameters.items())[:2])}, {"epsilon": 1e-5}
        yield "SkipLayerNormalization", {"x": x, "skip": normal(2, 3, width, dtype=dtype), **parameters}, MICROSOFT
    yield "SimplifiedLayerNormalization", {"x": x, "constant": parameters["constant0"]}, {}


def movement(dtype: str) -> Iterator[tuple[object, ...]]:
    transposed = [
        *(((4, 6), (1, 0)), ((2, 3, 5), (0, 2, 1)), ((2, 32, 64), (0, 2, 1)), ((2, 3, 4, 5), (0, 2, 1, 3))),
        *(((2, 8, 4, 16), (0, 2, 1, 3)), ((2, 8, 4, 64), (0, 2, 1, 3)), ((2, 8, 4, 64), (0, 2, 3, 1))),
        *(((2, 3, 4, 5, 6), (4, 1, 0, 2, 3)), ((1, 40, 70), (2, 0, 1)), ((2, 16, 64, 64), (0, 1, 3, 2))),
    ]
    for shape, order in transposed:
        yield "Transpose", {"x": normal(*shape, dtype=dtype)}, {"perm": order}
    for axis in range(3):

        def shape(length: int, axis: int = axis) -> list[int]:
            return [length if place == axis else size for place, size in enumerate((2, 3, 4))]

        for lengths in ((2, 3), (2, 2, 2)):
            yield "Concat", {f"x{i}": normal(*shape(n), dtype=dtype) for i, n in enumerate(lengths)}, {"axis": axis}
            x = normal(*shape(sum(lengths)), dtype=dtype)
            yield "Split", {"x": x, "constant": np.array(lengths)}, {"axis": axis, "outputs": len(lengths)}
        for start, end, step in ((1, 5, 2), (4, -100, -1)):
            bounds = {f"constant{i}": np.array([value]) for i, value in enumerate((start, end, axis, step))}
            yield "Slice", {"x": normal(5, 6, 7, dtype=dtype), **bounds}, {}
        for index in (np.array([[0, 2], [1, -1]]), np.array(1), np.array([0, 1, 1], np.int32)):
            yield "Gather", {"x": normal(3, 4, 5, dtype=dtype), "index": index}, {"axis": axis}
    expanded = (((1,), (6,)), ((3, 1), (3, 4)), ((2, 1, 3), (2, 4, 3)), ((2, 1, 3, 1), (2, 5, 3, 4)), ((), (2, 3)))
    for before, after in expanded:
        yield "Expand", {"x": normal(*before, dtype=dtype), "constant": np.array(after)}, {}


def products(dtype: str) -> Iterator[tuple[object, ...]]:
    shapes = [
        *(((8, 64), (64, 5)), ((2, 8, 64), (64, 5)), ((2, 8, 64), (2, 64, 5)), ((2, 3, 8, 64), (1, 3, 64, 5))),
        *(((64,), (64, 5)), ((1, 8, 16), (2, 16, 3)), ((2, 8, 16), (1, 16, 3))),
    ]
    for left, right in shapes:
        yield "MatMul", {"a": normal(*left, dtype=dtype), "b": normal(*right, dtype=dtype)}, {}
    biases = ((8, 5), (5,), (1,), (8, 1), (1, 5), None)
    for turn_a, turn_b, bias in itertools.product((0, 1), (0, 1), biases):
        arrays = {
            "a": normal(*((64, 8) if turn_a else (8, 64)), dtype=dtype),
            "b": normal(*((5, 64) if turn_b else (64, 5)), dtype=dtype),
        }
        if bias:
            arrays["constant"] = normal(*bias, dtype=dtype)
        yield "Gemm", arrays, {"transA": turn_a, "transB": turn_b, "alpha": 0.5, "beta": 2.0}


def integers(_: str) -> Iterator[tuple[object, ...]]:
    casts = "float32 float16, float16 float32, float32 int64, int64 float32, int32 int64, int64 int32, bool float32"
    for source, target in (pair.split() for pair in f"{casts}, int64 bool, bool int64".split(", ")):
        x = (random.standard_normal((3, 5)) * 5).astype(source)
        yield "Cast", {"x": x}, {"to": helper.np_dtype_to_tensor_dtype(np.dtype(target))}
    for operator in ("Add", "Sub", "Mul", "Div"):
        yield operator, {"a": random.integers(-50, 50, (3, 4)), "b": random.integers(1, 9, (4,))}, {}
    yield "And", {"a": random.random((3, 4)) > 0.5, "b": random.random(4) > 0.5}, {}
    yield "Not", {"a": random.random((3, 4)) > 0.5}, {}


def difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest error, relative to the largest element; infinite where shape, type or a NaN differs."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return float("inf")
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    if (np.isnan(got) != np.isnan(wanted)).any():
        return float("inf")
    scale = max(1.0, float(np.nanmax(np.abs(wanted), initial=0)))
    return float(np.nanmax(np.abs(got - wanted), initial=0)) / scale


results = []
groups = [*itertools.product((elementwise, rows, movement, products), ("float32", "float16")), (integers, "")]
for group, dtype in groups:
    for operator, arrays, options in group(dtype):
        attributes = dict(options)
        outputs = int(attributes.pop("outputs", 1))
        shapes = ", ".join(str(list(value.shape)) for value in arrays.values())
        name = f"{operator} {dtype} {shapes} {attributes}"
        model = make(name, operator, outputs, arrays, attributes)
        feeds = {key: value for key, value in arrays.items() if not key.startswith("constant")}
        wanted, _ = run(model, feeds, PROVIDERS[1])
        try:
            got, active = run(model, feeds, PROVIDERS[0])
        except Exception as error:
            results.append([name, dtype, str(error)])
            continue
        worst = max(map(difference, got, wanted))
        results.append([name, dtype, worst if active else "the provider is not active"])
print(json.dumps(results))
