"""A bfloat16 model widened to float32 holds the same weights and runs on the CPU."""

import gc

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import small_models
from onnx import TensorProto, helper, numpy_helper
from small_models import BFLOAT16, FLOAT

import rocline
from rocline.runtime import bfloat16
from rocline.runtime.widen import load_widened, widen_bfloat16

BITS = np.arange(1 << 16, dtype=np.uint16)


def every_bfloat16(*, raw):
    """Returns a tensor of all 65536 bfloat16 numbers."""
    if raw:
        return helper.make_tensor("w", BFLOAT16, BITS.shape, BITS.tobytes(), raw=True)
    tensor = TensorProto(name="w", data_type=BFLOAT16, dims=BITS.shape)
    tensor.int32_data.extend(BITS.tolist())
    return tensor


@pytest.mark.parametrize("raw", [True, False])
def test_weights_keep_their_values(raw):
    proto = small_models.model(
        [helper.make_node("Identity", ["w"], ["y"])], [], [("y", BFLOAT16, BITS.shape)], [every_bfloat16(raw=raw)]
    )
    widen_bfloat16(proto)
    (tensor,) = proto.graph.initializer
    assert tensor.data_type == FLOAT
    widened = numpy_helper.to_array(tensor)
    assert np.array_equal(widened.view(np.uint32) >> 16, BITS)
    assert not (widened.view(np.uint32) & 0xFFFF).any()
    onnx.checker.check_model(proto, full_check=True)


def layered(dtype, casts=True):
    """y = MatMul(Add(x, c), w) in bfloat16, with its values in every place that a type can stand in."""
    weights = np.random.default_rng(0).standard_normal((8, 8)).astype(ml_dtypes.bfloat16)
    w = helper.make_tensor("w", BFLOAT16, [8, 8], weights.tobytes(), raw=True)
    constant = helper.make_tensor("v", BFLOAT16, [8], weights[0].tobytes(), raw=True)
    branch = helper.make_graph(
        [helper.make_node("Mul", ["m", "w"], ["b"]), helper.make_node("Cast", ["b"], ["c16"], to=BFLOAT16)],
        "branch",
        [],
        [helper.make_tensor_value_info("c16", BFLOAT16, [8, 8])],
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], to=BFLOAT16),
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node("Add", ["x16", "c"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["m"]),
        helper.make_node("If", ["flag"], ["s"], then_branch=branch, else_branch=branch),
        helper.make_node("Cast", ["s"], ["y"], to=dtype),
    ]
    inputs = [("x", FLOAT, [8, 8]), ("flag", TensorProto.BOOL, [])]
    values = [("x16", BFLOAT16, [8, 8]), ("m", BFLOAT16, [8, 8])]
    return small_models.model(nodes, inputs, [("y", dtype, [8, 8])], [w], value_infos=values), weights


@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT16])
def test_a_bfloat16_model_runs_on_the_cpu(tmp_path, dtype):
    proto, weights = layered(dtype)
    x = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    with rocline.Session(small_models.save(proto, tmp_path), ["cpu"]) as session:
        assert session.report.notes == ("widened in memory from bfloat16 to float32: the CPU lacks bfloat16 operators",)
        assert session.outputs[0].dtype == "float32"
        y = session.run({"x": x, "flag": np.array(True)})["y"]
        wide = weights.astype(np.float32)
        np.testing.assert_allclose(y, (x + wide[0]) @ wide * wide, rtol=1e-5, atol=1e-5)
        assert session.report.placement.keys() == {"CPUExecutionProvider"}


def test_external_weights_are_widened(tmp_path):
    proto, _ = layered(FLOAT)
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    inside = small_models.save(layered(FLOAT)[0], tmp_path / "inside")
    feeds = {"x": np.ones((8, 8), np.float32), "flag": np.array(False)}
    outputs = [rocline.Session(path, ["cpu"]).run(feeds)["y"] for path in (tmp_path / "model.onnx", inside)]
    assert np.array_equal(*outputs)


@pytest.mark.parametrize("inside", [True, False])
def test_large_weights_are_kept_apart(tmp_path, inside):
    """As they must be past 2 GB, where a model cannot be serialised."""
    proto, weights = layered(FLOAT)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=not inside, location="w.bin", size_threshold=0)
    widened = load_widened(path, apart_from=256)
    assert widened.weights.keys() == {"w"}
    assert np.array_equal(widened.weights["w"], weights.astype(np.float32))
    assert len(load_widened(path, apart_from=257).model) > len(widened.model) + 200


def test_weights_apart_live_as_long_as_the_session(tmp_path):
    weights = np.random.default_rng(0).standard_normal((1024, 512)).astype(ml_dtypes.bfloat16)
    proto = small_models.model(
        [helper.make_node("Cast", ["x"], ["b"], to=BFLOAT16), helper.make_node("MatMul", ["b", "w"], ["y"])],
        [("x", FLOAT, [1, 1024])],
        [("y", BFLOAT16, [1, 512])],
        [helper.make_tensor("w", BFLOAT16, weights.shape, weights.tobytes(), raw=True)],
    )
    with rocline.Session(small_models.save(proto, tmp_path), ["cpu"]) as session:
        gc.collect()
        _ = [np.full((1024, 512), np.nan, np.float32) for _ in range(8)]
        y = session.run({"x": np.eye(1, 1024, dtype=np.float32)})["y"]
        assert np.array_equal(y[0], weights[0].astype(np.float32))
        assert session.report.placement == {"CPUExecutionProvider": {"MatMul": 1}}


def test_a_float32_model_is_left_alone(tmp_path):
    proto = small_models.matmul()
    before = proto.SerializeToString()
    widen_bfloat16(proto)
    assert proto.SerializeToString() == before
    assert rocline.Session(small_models.save(proto, tmp_path), ["cpu"]).report.notes == ()


def test_bfloat16_arrays_in_and_out(tmp_path):
    """As a GPU session passes them: the CPU has Cast for bfloat16, so the way through ONNX Runtime is the same."""
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=BFLOAT16), helper.make_node("Cast", ["z"], ["t"], to=FLOAT)]
    proto = small_models.model(
        nodes, [("x", FLOAT, [3, 2]), ("z", BFLOAT16, [2])], [("y", BFLOAT16, [3, 2]), ("t", FLOAT, [2])]
    )
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.arange(6, dtype=np.float32).reshape(2, 3).T
    z = np.array([1.5, -2], ml_dtypes.bfloat16)
    t, y = bfloat16.run(session, ["t", "y"], {"x": x, "z": z})
    assert y.dtype == ml_dtypes.bfloat16
    assert np.array_equal(y, x)
    assert t.tolist() == [1.5, -2]
