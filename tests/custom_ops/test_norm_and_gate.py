"""SkipRmsNorm and SwiGlu against references that are not ours: ONNX Runtime's own operator, and PyTorch."""

import numpy as np
import onnxruntime
import op_harness as harness
import pytest
import torch
from onnx import TensorProto, helper

from rocline import custom_ops
from rocline.custom_ops.schema import Case

NORM, GATE = custom_ops.specs()["SkipRmsNorm"], custom_ops.specs()["SwiGlu"]


def run(spec, case, arrays):
    session = harness.make_session(harness.make_model(spec, case, "float32", arrays))
    return session.run(None, arrays)


def contrib_norm(arrays, epsilon):
    names = ("input", "skip", "gamma")
    node = helper.make_node(
        "SkipSimplifiedLayerNormalization",
        names,
        ["output", "", "", "input_skip_bias_sum"],
        domain="com.microsoft",
        epsilon=epsilon,
    )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("output", "input_skip_bias_sum")
    ]
    model = helper.make_model(
        helper.make_graph([node], "graph", values, outputs),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, (arrays["x"], arrays["skip"], arrays["weight"]), strict=True)))


@pytest.mark.parametrize("hidden", [37, 576, 4096])
def test_norm_agrees_with_onnx_runtime(hidden):
    case = Case("contrib", {"x": (2, 5, hidden), "weight": (hidden,), "skip": (2, 5, hidden)}, {"epsilon": 1e-6})
    arrays = harness.make_inputs(NORM, case, "float32")
    for ours, theirs in zip(run(NORM, case, arrays), contrib_norm(arrays, 1e-6), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-6)


def test_norm_agrees_with_torch():
    case = Case("torch", {"x": (3, 111), "weight": (111,)}, {"epsilon": 1e-5}, outputs=1)
    arrays = harness.make_inputs(NORM, case, "float32")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    wanted = torch.nn.functional.rms_norm(tensors["x"], (111,), tensors["weight"], 1e-5)
    np.testing.assert_allclose(run(NORM, case, arrays)[0], wanted.numpy(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("silu", torch.nn.functional.silu),
        ("gelu", torch.nn.functional.gelu),
        ("gelu_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
    ],
)
def test_gates_agree_with_torch(activation, function):
    def gate(rng):
        return rng.normal(0, 4, (7, 222))

    case = Case("torch", {"gate": gate}, {"activation": activation})
    arrays = harness.make_inputs(GATE, case, "float32")
    halves = torch.from_numpy(arrays["gate"]).chunk(2, dim=-1)
    wanted = (function(halves[0]) * halves[1]).numpy()
    np.testing.assert_allclose(run(GATE, case, arrays)[0], wanted, rtol=4e-6, atol=2e-6)


def test_nan_and_infinity_come_through():
    case = Case("special", {"gate": (3,), "up": (3,)})
    gate = np.array([np.nan, np.inf, 100], np.float32)
    got = run(GATE, case, {"gate": gate, "up": np.ones(3, np.float32)})[0]
    np.testing.assert_array_equal(got, gate)


def test_a_packed_gate_of_unknown_width_goes_into_a_product():
    """ONNX Runtime writes -1 for a size that shape inference leaves without a name, and MatMul refuses it."""
    nodes = [
        helper.make_node("SwiGlu", ["gate"], ["y"], domain=custom_ops.DOMAIN),
        helper.make_node("MatMul", ["y", "weight"], ["product"]),
    ]
    shapes = {"gate": ["rows", "columns"], "weight": [4, 3], "product": ["rows", 3]}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(nodes, "graph", [values["gate"], values["weight"]], [values["product"]])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(custom_ops.DOMAIN, custom_ops.VERSION)]
    session = harness.make_session(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    (product,) = session.run(None, {"gate": np.ones((2, 8), np.float32), "weight": np.ones((4, 3), np.float32)})
    np.testing.assert_allclose(product, np.full((2, 3), 4 / (1 + np.exp(-1)), np.float32), rtol=1e-6)
