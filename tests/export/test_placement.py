"""Where the nodes of a file are expected to run: from kernel lists, shape computations apart."""

import dataclasses

import onnx
import pytest
import tiny_models
from exported import exported
from graph_rules import model

from rocline.export import dtypes, export_model, fitting, placement, targets

ROCM, CPU = "ROCMExecutionProvider", "CPUExecutionProvider"


def predict(proto, folder, target="rocm"):
    onnx.save(proto, folder / "model.onnx")
    return placement.predict(folder / "model.onnx", targets.load(target))


def test_what_only_computes_shapes_stays_on_the_cpu(tmp_path):
    proto = model(
        """
        graph (float[b, s, 8] x) => (float[t, 8] y, float[b, s, 8] z)
        {
            shape = Shape(x)
            zero = Constant <value_ints = [0]> ()
            size = Gather(shape, zero)
            eight = Constant <value_ints = [8]> ()
            more = Mul(size, eight)
            target = Concat <axis = 0> (more, eight)
            minus = Constant <value_ints = [-1]> ()
            some = Concat <axis = 0> (minus, eight)
            y = Reshape(x, some)
            filled = ConstantOfShape(target)
            sum = Expand(filled, target)
            z = Neg(x)
        }"""
    )
    found = predict(proto, tmp_path)
    assert found.shapes == {"Concat": 1, "Gather": 1, "Mul": 1}
    # Of constants alone: no Shape comes before it. What reads its shape on the host runs on the device.
    assert found.nodes == {ROCM: {"Concat": 1, "ConstantOfShape": 1, "Expand": 1, "Neg": 1, "Reshape": 1, "Shape": 1}}
    assert predict(proto, tmp_path, "cpu").shapes == {}
    assert set(predict(proto, tmp_path, "cpu").nodes) == {CPU}


def test_a_half_type_is_never_moved_to_the_cpu(tmp_path):
    proto = model(
        """
        graph (float16[b, s] x) => (float16[n] y)
        { shape = Shape(x) half = Cast <to = 10> (shape) y = Neg(half) }"""
    )
    found = predict(proto, tmp_path)
    assert found.shapes == {"Cast": 1}
    assert found.nodes == {ROCM: {"Neg": 1, "Shape": 1}}


@pytest.mark.parametrize(
    ("body", "target", "lacking"),
    [
        ("y = com.microsoft.RotaryEmbedding(x, p, c, c)", "rocm", {"com.microsoft::RotaryEmbedding": 1}),
        ("y = com.microsoft.Gelu(x)", "migraphx", {"com.microsoft::Gelu": 1}),
        ("y = Erf(x)", "rocm", {}),
        ("y = Det(x)", "cuda", {"Det": 1}),
    ],
)
def test_a_node_without_a_kernel_runs_on_the_cpu(body, target, lacking, tmp_path):
    proto = model(f"graph (float[b, s, 8] x, int64[b, s] p, float[9, 4] c) => (float[b, s, 8] y) {{ {body} }}")
    assert predict(proto, tmp_path, target).nodes.get(CPU, {}) == lacking


def test_never_means_never(tmp_path):
    proto = model("graph (float[b, s, 8] x) => (float[b, s, 8] y) { y = Erf(x) }")
    onnx.save(proto, tmp_path / "model.onnx")
    target = dataclasses.replace(targets.load("rocm"), never={"Erf": "for this test"})
    assert placement.predict(tmp_path / "model.onnx", target).nodes == {CPU: {"Erf": 1}}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_fused_decoder_in_a_half_type_computes_nothing_on_the_cpu(dtype, tmp_path):
    task = tiny_models.save("llama", tmp_path / "source")
    manifest = export_model(tmp_path / "source", tmp_path / "out", task=task, dtype=dtype)
    fusion = manifest.fusion["model.onnx"]
    assert manifest.cache == "static"
    assert set(fusion.placement) == {ROCM}
    assert fusion.placement[ROCM]["rocline::CachedAttention"] == 2
    assert sum(fusion.placement[ROCM].values()) + sum(fusion.shapes.values()) == fusion.nodes_after


@pytest.mark.parametrize(("kind", "dtype"), [("bert", "fp16"), ("bert", "bf16"), ("vit", "fp16"), ("wav2vec2", "fp16")])
def test_a_fused_encoder_computes_nothing_on_the_cpu(kind, dtype, tmp_path):
    subject = exported(kind, tmp_path)
    target = targets.load("rocm")
    fitting.fuse(subject.path, subject.model.config, target, dtype)
    dtypes.convert(subject.path, dtype, target)
    assert set(placement.predict(subject.path, target).nodes) == {ROCM}
