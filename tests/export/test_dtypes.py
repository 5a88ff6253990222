"""fp16 and bf16: numbers, what stays in fp32, what is clamped, what is refused."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from exported import exported
from onnx import TensorProto, helper, numpy_helper

from rocline.errors import ExportError
from rocline.export import dtypes, parity, targets

FLOAT, HALF, BFLOAT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
ROCM = targets.load("rocm")


def save(path, nodes, inputs, outputs, initializers=(), opset=18):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in initializers],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def run(path, **feeds):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def weights(path):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_models_follow_pytorch_within_the_bound(kind, dtype, tmp_path):
    subject = exported(kind, tmp_path)
    for path in subject.files.values():
        before = path.stat().st_size
        dtypes.convert(path, dtype, ROCM)
        assert path.stat().st_size < before
    rows = parity.measure(
        subject.files,
        subject.cases(),
        bound=parity.BOUNDS[dtype],
        against="torch",
        inputs="",
        target=ROCM,
        torch_model=subject.model,
    )
    assert max(row.max_abs / row.bound for row in rows) > 0.01


@pytest.mark.parametrize(("dtype", "kind"), [("fp16", HALF), ("bf16", BFLOAT)])
def test_the_cache_is_half_and_other_inputs_and_outputs_are_not(dtype, kind, tmp_path):
    llama = exported("llama", tmp_path)
    dtypes.convert(llama.path, dtype, ROCM)
    graph = onnx.load(llama.path).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert types["logits"] == FLOAT
    assert types["input_ids"] == TensorProto.INT64
    assert {types[name] for name in types if name.startswith(("past_key_values.", "present."))} == {kind}
    big = [tensor for tensor in graph.initializer if np.prod(tensor.dims) > 100]
    assert {tensor.data_type for tensor in big} == {kind}


def test_conversion_is_deterministic(tmp_path):
    contents = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        t5 = exported("t5", tmp_path / name)
        for path in t5.files.values():
            dtypes.convert(path, "fp16", ROCM)
        contents.append([path.read_bytes() for path in t5.files.values()])
    assert contents[0] == contents[1]


def test_casts_are_shared(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["x"], ["b"])]
    nodes += [helper.make_node("Add", ["a", "b"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, [("x", FLOAT, [4])], [("y", FLOAT, [4])])
    dtypes.convert(path, "fp16", ROCM)
    operators = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert operators == {"Cast": 2, "Relu": 1, "Neg": 1, "Add": 1}
    np.testing.assert_array_equal(run(path, x=np.float32([-1, 0, 2, 3])), [1, 0, 0, 0])


def test_a_mask_is_clamped_and_named_with_room_for_sums(tmp_path):
    path = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Where", ["seen", "zero", "lowest"], ["mask"]),
            helper.make_node("Add", ["x", "mask"], ["once"]),
            helper.make_node("Add", ["once", "mask"], ["twice"]),
            helper.make_node("Softmax", ["twice"], ["y"]),
        ],
        [("x", FLOAT, [1, 3]), ("seen", TensorProto.BOOL, [1, 3])],
        [("y", FLOAT, [1, 3])],
        [("zero", np.float32(0)), ("lowest", np.finfo(np.float32).min)],
    )
    notes = dtypes.convert(path, "fp16", ROCM)
    assert notes == ["clamped 1 constants outside the range of fp16: lowest (-3.4e+38 to -3.275e+04)"]
    assert weights(path)["lowest"] == np.float16(-32752)
    hidden = run(path, x=np.float32([[1, 1, 1]]), seen=np.array([[False, False, False]]))
    np.testing.assert_allclose(hidden, 1 / 3, atol=1e-3)


def test_bounds_of_a_clip_are_clamped_to_the_whole_range(tmp_path):
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Clip", ["x", "low", "high"], ["y"])],
        [("x", FLOAT, [2])],
        [("y", FLOAT, [2])],
        [("low", np.finfo(np.float32).min), ("high", np.finfo(np.float32).max)],
    )
    dtypes.convert(path, "fp16", ROCM)
    np.testing.assert_array_equal(run(path, x=np.float32([-60000, 60000])), [-60000, 60000])


def test_minus_infinity_stays(tmp_path):
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Max", ["x", "floor"], ["y"])],
        [("x", FLOAT, [1])],
        [("y", FLOAT, [1])],
        [("floor", np.float32(-np.inf))],
    )
    assert dtypes.convert(path, "fp16", ROCM) == []
    assert np.isneginf(weights(path)["floor"])


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_angles_of_long_positions_stay_exact(dtype, tmp_path):
    """Rotary angles from positions: beyond 2048 fp16 has no odd numbers, beyond 256 bf16 has none."""
    frequency = (1 / 10000 ** (np.arange(0, 8, 2, dtype=np.float32) / 8)).reshape(1, 4, 1)
    path = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Expand", ["frequency", "shape"], ["expanded"]),
            helper.make_node("Cast", ["positions"], ["float_positions"], to=FLOAT),
            helper.make_node("MatMul", ["expanded", "float_positions"], ["angles"]),
            helper.make_node("Cos", ["angles"], ["cos"]),
            helper.make_node("Mul", ["cos", "x"], ["y"]),
        ],
        [("positions", TensorProto.INT64, [1, 1, "s"]), ("x", FLOAT, [1, 4, "s"])],
        [("y", FLOAT, [1, 4, "s"])],
        [("frequency", frequency), ("shape", np.int64([1, 4, 1]))],
    )
    dtypes.convert(path, dtype, ROCM)
    assert weights(path)["frequency"].dtype == np.float32
    nodes = {node.op_type: node for node in onnx.load(path).graph.node}
    kinds = {name for node in (nodes["Mul"],) for name in node.input}
    assert "cos" not in kinds
    if dtype == "fp16":
        positions = np.int64([[[1, 2049, 5001]]])
        x = np.ones((1, 4, 3), np.float32)
        np.testing.assert_allclose(run(path, positions=positions, x=x), np.cos(frequency * positions), atol=1e-3)


def test_the_mean_of_squares_stays_in_fp32_until_the_norm_is_applied(tmp_path):
    path = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Relu", ["x"], ["h"]),
            helper.make_node("Pow", ["h", "two"], ["square"]),
            helper.make_node("ReduceMean", ["square", "axes"], ["mean"]),
            helper.make_node("Add", ["mean", "epsilon"], ["safe"]),
            helper.make_node("Sqrt", ["safe"], ["root"]),
            helper.make_node("Div", ["h", "root"], ["normed"]),
            helper.make_node("Mul", ["weight", "normed"], ["y"]),
        ],
        [("x", FLOAT, [1, 4])],
        [("y", FLOAT, [1, 4])],
        [
            ("two", np.float32(2)),
            ("axes", np.int64([-1])),
            ("epsilon", np.float32(1e-6)),
            ("weight", np.ones(4, np.float32)),
        ],
    )
    dtypes.convert(path, "fp16", ROCM)
    kept = weights(path)
    assert (kept["two"].dtype, kept["epsilon"].dtype, kept["weight"].dtype) == (np.float32, np.float32, np.float16)
    casts = [node for node in onnx.load(path).graph.node if node.op_type == "Cast"]
    # In, h up for the norm, the norm's result down, out.
    assert len(casts) == 4
    x = np.float32([[1000, 2000, 3000, 4000]])
    np.testing.assert_allclose(run(path, x=x), x / np.sqrt((x**2).mean()), rtol=1e-3)


def test_an_epsilon_that_would_vanish_keeps_its_division_in_fp32(tmp_path):
    path = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("ReduceL2", ["x", "axes"], ["norm"]),
            helper.make_node("Clip", ["norm", "tiny"], ["safe"]),
            helper.make_node("Div", ["x", "safe"], ["y"]),
        ],
        [("x", FLOAT, [1, 2])],
        [("y", FLOAT, [1, 2])],
        [("axes", np.int64([-1])), ("tiny", np.float32(1e-12))],
    )
    dtypes.convert(path, "fp16", ROCM)
    assert weights(path)["tiny"] == np.float32(1e-12)
    np.testing.assert_array_equal(run(path, x=np.zeros((1, 2), np.float32)), [[0, 0]])


def test_a_weight_matrix_ends_what_is_derived_from_integers(tmp_path):
    """Pixels given as bytes must not keep a whole network in fp32."""
    path = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Cast", ["pixels"], ["floats"], to=FLOAT),
            helper.make_node("MatMul", ["floats", "weight"], ["y"]),
        ],
        [("pixels", TensorProto.UINT8, [1, 4])],
        [("y", FLOAT, [1, 4])],
        [("weight", np.eye(4, dtype=np.float32))],
    )
    dtypes.convert(path, "fp16", ROCM)
    assert weights(path)["weight"].dtype == np.float16


def test_bf16_is_refused_by_name_where_the_provider_cannot(tmp_path):
    vit = exported("vit", tmp_path)
    before = vit.path.read_bytes()
    with pytest.raises(ExportError) as caught:
        dtypes.convert(vit.path, "bf16", ROCM)
    assert str(caught.value) == (
        "dtype 'bf16': ROCMExecutionProvider of target 'rocm' has no bf16 kernel for Conv (1): choose fp16 or fp32"
    )
    assert vit.path.read_bytes() == before


def test_bf16_is_refused_for_a_target_without_it(tmp_path):
    with pytest.raises(ExportError, match="dtype 'bf16': target 'cpu' runs fp32, fp16"):
        dtypes.convert(tmp_path / "m.onnx", "bf16", targets.load("cpu"))


def test_a_comparison_without_a_bf16_kernel_stays_behind_a_cast(tmp_path):
    path = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("IsNaN", ["x"], ["broken"]),
            helper.make_node("Where", ["broken", "zero", "x"], ["y"]),
        ],
        [("x", FLOAT, [2])],
        [("y", FLOAT, [2])],
        [("zero", np.float32(0))],
    )
    assert dtypes.convert(path, "bf16", ROCM) == ["stayed in fp32, since rocm has no bf16 kernel: IsNaN (1)"]


def test_an_operator_without_an_fp16_kernel_stays_in_fp32(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Mish", ["a"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, [("x", FLOAT, [2])], [("y", FLOAT, [2])])
    assert dtypes.convert(path, "fp16", ROCM) == ["stayed in fp32, since rocm has no fp16 kernel: Mish (1)"]
    x = np.float32([0.5, 1])
    np.testing.assert_allclose(run(path, x=x), x * np.tanh(np.log1p(np.exp(x))), atol=1e-3)


def test_external_data_are_read_and_large_results_get_them(tmp_path, monkeypatch):
    bert = exported("bert", tmp_path)
    onnx.save(onnx.load(bert.path), bert.path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    monkeypatch.setattr("rocline.export.graph_files.MAX_INLINE_BYTES", 1000)
    dtypes.convert(bert.path, "fp16", ROCM)
    locations = {e.value for t in onnx.load(bert.path, load_external_data=False).graph.initializer
                 for e in t.external_data if e.key == "location"}  # fmt: skip
    assert locations == {"model.onnx.data"}
    parity.measure(bert.files, bert.cases(), bound=1e-2, against="", inputs="", target=ROCM)
