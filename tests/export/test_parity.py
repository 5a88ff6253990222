"""Parity with PyTorch: tiny models of each shape pass, and what is planted in their files is found and named."""

import dataclasses

import numpy as np
import onnx
import pytest
from exported import exported

from rocline.errors import ExportError, ParityError
from rocline.export import diverge, encoder_optimizer, parity, targets
from rocline.export.samples import Samples

KINDS = ("bert", "roberta", "llama", "gpt2", "mistral", "gemma", "vit", "yolos", "wav2vec2", "t5", "whisper")


def measure(subject, bound=1e-4, cases=None, *, localise=True):
    return parity.measure(
        subject.files,
        subject.cases() if cases is None else cases,
        bound=bound,
        against="torch",
        inputs=subject.samples.description,
        target=targets.load("rocm"),
        torch_model=subject.model if localise else None,
    )


def change_weight(path, node_name, change):
    """Changes the weight that the named MatMul or Gemm applies, wherever it is."""
    model = onnx.load(path)
    graphs = [model.graph, *(a.g for n in model.graph.node for a in n.attribute if a.HasField("g"))]
    node = next(
        n for g in graphs for n in g.node if node_name in n.name and n.op_type in ("Attention", "MatMul", "Gemm")
    )
    tensor = next(t for g in graphs for t in g.initializer if t.name == node.input[1])
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, path)


@pytest.mark.parametrize("kind", KINDS)
def test_exported_models_follow_pytorch(kind, tmp_path):
    subject = exported(kind, tmp_path)
    rows = measure(subject)
    assert {row.model for row in rows} == set(subject.files)
    assert all(row.max_abs <= 1e-5 and row.mean_abs <= row.max_abs for row in rows)
    # Not a comparison with itself: two implementations round differently somewhere.
    assert any(row.max_abs > 0 for row in rows)
    assert {row.inputs for row in rows} == {subject.samples.description}


def test_left_padding(tmp_path):
    llama = exported("llama", tmp_path)
    batch = {name: array.copy() for name, array in llama.samples.inputs[0].items()}
    for row, mask in enumerate(llama.samples.inputs[0]["attention_mask"]):
        for array in batch.values():
            array[row] = np.roll(array[row], int((mask == 0).sum()))
    assert not batch["attention_mask"][:, 0].all()
    measure(dataclasses.replace(llama, samples=Samples([batch], "padded on the left")))


@pytest.mark.parametrize(
    ("kind", "node", "layer"),
    [
        ("bert", "encoder/layer.1/attention/self/value", "encoder.layer.1.attention.self.value"),
        ("llama", "layers.1/mlp/up_proj", "model.layers.1.mlp.up_proj"),
        ("gpt2", "h.0/attn/c_attn", "transformer.h.0.attn.c_attn"),
        ("vit", "layer.1/attention/attention/key", "vit.encoder.layer.1.attention.attention.key"),
        ("t5", "decoder/block.1/layer.0/SelfAttention/q", "decoder.block.1.layer.0.SelfAttention.q"),
        ("whisper", "decoder/layers.1/self_attn/q_proj", "model.decoder.layers.1.self_attn.q_proj"),
    ],
)
def test_a_changed_weight_is_found_in_its_layer(kind, node, layer, tmp_path):
    subject = exported(kind, tmp_path)
    change_weight(list(subject.files.values())[-1], node, lambda weight: weight * np.float32(1.5))
    with pytest.raises(ParityError, match=rf"first diverging layer: {layer} \(max abs [\d.]+\)"):
        measure(subject)


def test_the_message_names_output_place_and_values(tmp_path):
    bert = exported("bert", tmp_path)
    change_weight(bert.path, "encoder/layer.1/output/dense", lambda weight: weight * np.float32(1.01))
    with pytest.raises(ParityError) as caught:
        measure(bert, localise=False)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("model.onnx for rocm: output 'last_hidden_state' is 0.")
    assert "torch gives" in message
    assert "bound 0.0001 of" in message
    assert "diverging" not in message


@pytest.mark.parametrize(
    ("kind", "node", "layer"),
    [
        ("bert", "Attention_1", r"encoder\.layer\.1\.attention"),
        ("vit", "encoder/layer.1/output/dense", r"vit\.encoder\.layer\.1\.output"),
    ],
)
def test_a_changed_weight_is_found_in_a_fused_graph(kind, node, layer, tmp_path):
    subject = exported(kind, tmp_path)
    encoder_optimizer.optimize(subject.path, model_type=kind, heads=4, hidden_size=32, target=targets.load("rocm"))
    measure(subject)
    change_weight(subject.path, node, lambda weight: weight * np.float32(1.5))
    with pytest.raises(ParityError, match=f"first diverging layer: {layer}"):
        measure(subject)


def test_a_difference_that_heals_is_a_mismatch():
    def layer(name, far, *inputs):
        return diverge.Layer(name, np.ones(1, np.float32), frozenset(inputs), far)

    mismatched = [layer("a", 0.5, 1), layer("b", 0.0, 2), layer("q", 0.5, 3), layer("k", 0.0, 3), layer("c", 0.5, 4)]
    assert diverge.first_diverging(mismatched, 1e-4).name == "q"
    assert diverge.first_diverging([layer("a", 0.0, 1), layer("b", 1e-5, 2)], 1e-4) is None
    assert diverge.first_diverging([layer("a", 0.5, 1), layer("b", 0.0, 2)], 1e-4).name == "a"


def test_nan_in_one_layer(tmp_path):
    bert = exported("bert", tmp_path)

    def poison(weight):
        weight = weight.copy()
        weight[0, 0] = np.nan
        return weight

    change_weight(bert.path, "encoder/layer.0/attention/output/dense", poison)
    with pytest.raises(
        ParityError, match=r"'last_hidden_state' is not finite .* layer: encoder.layer.0.attention.output.dense \(max"
    ):
        measure(bert)


def test_nan_on_both_sides_is_no_difference():
    nan, inf = np.nan, np.inf
    got = np.array([nan, nan, inf, inf, 1.0, 2.0], np.float32)
    wanted = np.array([nan, 1.0, inf, -inf, nan, 2.5], np.float32)
    np.testing.assert_array_equal(parity.absolute_difference(got, wanted), [0, inf, 0, inf, inf, 0.5])


def test_padding_is_not_compared(tmp_path):
    bert = exported("bert", tmp_path)
    case = bert.cases()[0]
    row, column = np.argwhere(~case.real["last_hidden_state"])[0]
    case.expected["last_hidden_state"][row, column] = 1e6
    measure(bert, cases=[case])
    case.expected["last_hidden_state"][row, 0] += 1
    with pytest.raises(ParityError, match=rf"at \[{row}, 0, \d+\]"):
        measure(bert, cases=[case], localise=False)


def test_another_shape_is_an_error(tmp_path):
    bert = exported("bert", tmp_path)
    case = bert.cases()[0]
    case.expected["last_hidden_state"] = case.expected["last_hidden_state"][:, :, :16]
    with pytest.raises(ParityError, match=r"has shape \(4, \d+, 32\) in the forward, PyTorch's has \(4, \d+, 16\)"):
        measure(bert, cases=[case])


def test_bounds_are_relative_above_one(tmp_path):
    bert = exported("bert", tmp_path)
    (row,) = measure(bert, bound=1e-5)
    peak = max(np.abs(case.expected["last_hidden_state"]).max() for case in bert.cases())
    assert peak > 2
    assert row.bound == pytest.approx(1e-5 * peak)


def test_a_file_onnx_runtime_does_not_load(tmp_path):
    bert = exported("bert", tmp_path)
    model = onnx.load(bert.path)
    model.opset_import[0].version = 99
    onnx.save(model, bert.path)
    with pytest.raises(ExportError, match=r"model\.onnx: ONNX Runtime does not load it: "):
        measure(bert)
