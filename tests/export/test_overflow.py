"""fp16 where values or weights leave its range: an island in fp32, and a line that names it."""

import contextlib

import ml_dtypes
import numpy as np
import onnx
import pytest
from exported import exported
from onnx import TensorProto, helper, numpy_helper

from rocline.errors import ExportError
from rocline.export import dtypes, fitting, overflow, parity, targets

FLOAT = TensorProto.FLOAT
ROCM = targets.load("rocm")
LARGEST = float(ml_dtypes.finfo(np.float16).max)


def save(path, nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in initializers],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def weights(path):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def scaled(path, name, factor):
    """Multiplies the weight of the product whose node is named so."""
    model = onnx.load(path)
    (node,) = (node for node in model.graph.node if name in node.name and node.op_type == "MatMul")
    for tensor in model.graph.initializer:
        if tensor.name in node.input:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    onnx.save(model, path)


def convert(subject):
    cases = subject.cases()
    notes = []
    for name, path in subject.files.items():
        peaks = overflow.scan(path, [case for case in cases if case.model == name])
        notes += dtypes.convert(path, "fp16", ROCM, peaks)
    return notes


def infinite(path, case, folder):
    """The fp16 values of a converted file that are infinite or NaN: every one is an output, and so rounded to fp16."""
    model = onnx.load(path)
    for node in model.graph.node:
        for name in node.output:
            if name and name not in {output.name for output in model.graph.output}:
                model.graph.output.add().name = name
    onnx.save(model, folder / "opened.onnx")
    feeds = {spec.name: case.feeds[spec.name] for spec in model.graph.input}
    kinds = {spec.name: spec.type.tensor_type.elem_type for spec in model.graph.input}
    feeds = {
        name: array.astype(np.float16) if kinds[name] == TensorProto.FLOAT16 else array for name, array in feeds.items()
    }
    with contextlib.ExitStack() as stack:
        session = parity.open_session(folder / "opened.onnx", stack)
        names = [output.name for output in session.get_outputs()]
        arrays = dict(zip(names, session.run(names, feeds), strict=True))
    return {name for name, array in arrays.items() if array.dtype == np.float16 and not np.isfinite(array).all()}


@pytest.fixture
def loud(tmp_path):
    """ViT whose second MLP reaches 1e6 between its projections, in PyTorch and in ONNX, fused for ROCm."""
    import torch

    vit = exported("vit", tmp_path)
    layer = vit.model.vit.encoder.layer[1]
    first, second = layer.intermediate.dense.weight, layer.output.dense.weight
    with torch.no_grad():
        first *= 1e6
        second *= 1e-6
    scaled(vit.path, "layer.1/intermediate/dense", 1e6)
    scaled(vit.path, "layer.1/output/dense", 1e-6)
    fitting.fuse(vit.path, vit.model.config, ROCM, "fp16")
    yield vit
    with torch.no_grad():
        first /= 1e6
        second /= 1e-6


def test_what_overflows_becomes_an_island_with_a_line(loud, tmp_path):
    (note,) = convert(loud)
    assert note.startswith("kept 3 nodes in fp32, for values near or beyond 65504 on the sample inputs (at most ")
    assert "BiasGelu" in note
    assert "MatMul /vit/encoder/layer.1/intermediate/dense/MatMul" in note
    assert "MatMul /vit/encoder/layer.1/output/dense/MatMul" in note
    kinds = {
        node.name: tensor.data_type
        for node in onnx.load(loud.path).graph.node
        for tensor in onnx.load(loud.path).graph.initializer
        if node.op_type == "MatMul" and tensor.name in node.input
    }
    wide = {name for name, kind in kinds.items() if kind == FLOAT}
    assert wide == {"/vit/encoder/layer.1/intermediate/dense/MatMul", "/vit/encoder/layer.1/output/dense/MatMul"}
    for case in loud.cases():
        assert infinite(loud.path, case, tmp_path) == set()
    parity.measure(loud.files, loud.cases(), bound=1e-2, against="torch", inputs="", target=ROCM)


def test_without_the_island_it_overflows(loud, tmp_path):
    dtypes.convert(loud.path, "fp16", ROCM)
    assert infinite(loud.path, loud.cases()[0], tmp_path)


@pytest.mark.parametrize("kind", ["bert", "t5", "whisper", "llama", "vit"])
def test_masks_and_tame_models_need_no_island(kind, tmp_path):
    subject = exported(kind, tmp_path)
    if kind != "llama":
        for path in subject.files.values():
            fitting.fuse(path, subject.model.config, ROCM, "fp16")
    assert not [note for note in convert(subject) if "in fp32, for values" in note]


def test_a_weight_outside_the_range_is_kept_and_not_clamped(tmp_path):
    weight = np.eye(4, dtype=np.float32)
    weight[0, 0] = 1e5
    path = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("MatMul", ["x", "weight"], ["h"], name="/up"),
            helper.make_node("Mul", ["h", "back"], ["y"], name="/back"),
        ],
        [("x", [1, 4])],
        [("y", [1, 4])],
        [("weight", weight), ("back", 1e-5)],
    )
    (note,) = dtypes.convert(path, "fp16", ROCM)
    assert note.startswith("kept 1 nodes in fp32")
    assert weights(path)["weight"].max() == 1e5


def test_a_factor_outside_the_range_is_no_mask(tmp_path):
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Mul", ["x", "factor"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])],
        [("x", [1, 4])],
        [("y", [1, 4])],
        [("factor", 1e6)],
    )
    dtypes.convert(path, "fp16", ROCM)
    assert weights(path)["factor"] == np.float32(1e6)


def test_a_cache_that_overflows_is_refused(tmp_path):
    llama = exported("llama", tmp_path)
    before = llama.path.read_bytes()
    peaks = {"present.1.value": 1e6}
    with pytest.raises(ExportError) as caught:
        dtypes.convert(llama.path, "fp16", ROCM, peaks)
    assert str(caught.value) == (
        "dtype 'fp16': present.1.value reaches 1e+06 on the sample inputs, which a cache in fp16 cannot hold: "
        "choose bf16 or fp32"
    )
    assert llama.path.read_bytes() == before


def test_the_scan_sees_every_value_of_both_branches(tmp_path, monkeypatch):
    monkeypatch.setattr(overflow, "_VALUES_A_RUN", 90)
    t5 = exported("t5", tmp_path)
    path = t5.files["decoder_model_merged.onnx"]
    cases = [case for case in t5.cases() if case.model == path.name]
    peaks = overflow.scan(path, cases)
    (switch,) = onnx.load(path).graph.node
    for branch in switch.attribute:
        (last,) = (
            name
            for node in branch.g.node
            if "lm_head" in node.name and node.op_type == "MatMul"
            for name in node.output
        )
        assert 0 < peaks[last] < LARGEST
