"""Encoders and encoder-decoders after the passes: what is fused, why the rest is not, and PyTorch's numbers."""

import dataclasses
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from exported import exported

from rocline.custom_ops.rewriting import MARKERS
from rocline.export import dtypes, fitting, graph_files, overflow, parity, placement, targets
from rocline.export.samples import Samples

# What each file holds for ROCm in fp32: operators that ONNX has none of, and what a rule left alone.
FUSED = {
    "bert": {"model.onnx": {"Attention": 2, "BiasGelu": 2, "EmbedLayerNormalization": 1, "SkipLayerNormalization": 4}},
    "roberta": {"model.onnx": {"Attention": 2, "BiasGelu": 3, "SkipLayerNormalization": 4}},
    "vit": {"model.onnx": {"BiasGelu": 2, "CachedAttention": 2, "SkipLayerNormalization": 4}},
    "yolos": {"model.onnx": {"BiasGelu": 2, "CachedAttention": 2, "SkipLayerNormalization": 3}},
    "wav2vec2": {"model.onnx": {"BiasGelu": 2, "CachedAttention": 2, "Gelu": 4, "SkipLayerNormalization": 4}},
    "whisper": {
        "encoder_model.onnx": {"BiasGelu": 2, "CachedAttention": 2, "Gelu": 2, "SkipLayerNormalization": 4},
        "decoder_model_merged.onnx": {"BiasGelu": 4, "CachedAttention": 8, "SkipLayerNormalization": 12},
    },
    "t5": {
        "encoder_model.onnx": {"CachedAttention": 2, "SkipRmsNorm": 5},
        "decoder_model_merged.onnx": {"CachedAttention": 8, "SkipRmsNorm": 14},
    },
}
# Reasons beside "the shapes that it sums may differ", which the first norm after an embedding has everywhere.
REASONS = {
    "vit": {"what it sums has no known shape, or is a constant"},
    "whisper": {"what it sums has no known shape, or is a constant"},
}


def fuse(subject, target="rocm", dtype="fp32"):
    loaded = targets.load(target)
    return {name: fitting.fuse(path, subject.model.config, loaded, dtype) for name, path in subject.files.items()}


def operators(path):
    return Counter(node.op_type for node in ir.load(path).graph.all_nodes() if node.domain)


def measure(subject, bound=1e-4, target="rocm"):
    return parity.measure(
        subject.files,
        subject.cases(),
        bound=bound,
        against="torch",
        inputs="",
        target=targets.load(target),
        torch_model=subject.model,
    )


@pytest.mark.parametrize("kind", FUSED)
def test_fused_or_refused_with_a_reason_and_pytorchs_numbers(kind, tmp_path):
    subject = exported(kind, tmp_path)
    fused = fuse(subject)
    assert {name: dict(operators(path)) for name, path in subject.files.items()} == FUSED[kind]
    reasons = {refusal.reason for made in fused.values() for entry in made.outcomes for refusal in entry.refused}
    assert {reason for reason in reasons if reason != "the shapes that it sums may differ"} == REASONS.get(kind, set())
    measure(subject)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_a_padding_mask_becomes_positions(kind, tmp_path):
    """Where the target has no Attention in the dtype; rows have different lengths, padded on either side."""
    subject = exported(kind, tmp_path)
    fuse(subject, dtype="bf16")
    graph = ir.load(subject.path).graph
    attentions = [node for node in graph if node.op_type == "CachedAttention"]
    assert [len(node.inputs) for node in attentions] == [4, 4]
    (positions,) = {node.inputs[3] for node in attentions}
    assert positions.producer().op_type == "Sub"
    assert positions.producer().inputs[0].name == "attention_mask"
    measure(subject)
    batch = {name: array.copy() for name, array in subject.samples.inputs[0].items()}
    for row, mask in enumerate(subject.samples.inputs[0]["attention_mask"]):
        for array in batch.values():
            array[row] = np.roll(array[row], int((mask == 0).sum()))
    assert len(set(batch["attention_mask"].sum(axis=1))) > 1
    measure(dataclasses.replace(subject, samples=Samples([batch], "padded on the left")))


def test_attentions_of_one_length_share_their_positions(tmp_path):
    vit = exported("vit", tmp_path)
    fuse(vit)
    graph = ir.load(vit.path).graph
    assert len({node.inputs[3] for node in graph if node.op_type == "CachedAttention"}) == 1


@pytest.mark.parametrize("target", ["migraphx", "portable"])
@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_standard_operators_only(kind, target, tmp_path):
    subject = exported(kind, tmp_path)
    before = graph_files.interface(subject.path)
    fused = fuse(subject, target)["model.onnx"]
    assert not operators(subject.path)
    assert graph_files.interface(subject.path).opsets == {"ai.onnx": before.opsets["ai.onnx"]}
    reasons = {refusal.reason for entry in fused.outcomes for refusal in entry.refused}
    assert reasons == {"the target has no Gelu in fp32", "the target has no SkipLayerNormalization in fp32"}
    measure(subject, target=target)


@pytest.mark.parametrize("kind", ["bert", "vit", "whisper", "t5", "wav2vec2"])
def test_fp16_follows_pytorch_within_its_bound(kind, tmp_path):
    subject = exported(kind, tmp_path)
    fuse(subject, dtype="fp16")
    cases = subject.cases()
    for name, path in subject.files.items():
        dtypes.convert(path, "fp16", targets.load("rocm"), overflow.scan(path, [c for c in cases if c.model == name]))
    measure(subject, bound=parity.BOUNDS["fp16"])


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_bf16_gets_operators_that_have_it(kind, tmp_path):
    subject = exported(kind, tmp_path)
    fuse(subject, dtype="bf16")
    for path in subject.files.values():
        dtypes.convert(path, "bf16", targets.load("rocm"))
        assert operators(path)["CachedAttention"]
        placed = placement.predict(path, targets.load("rocm")).nodes
        assert set(placed) <= {"ROCMExecutionProvider", "CPUExecutionProvider"}
    measure(subject, bound=parity.BOUNDS["bf16"])


def test_the_same_bytes_every_time(tmp_path):
    contents = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        whisper = exported("whisper", tmp_path / name)
        fuse(whisper)
        contents.append([path.read_bytes() for path in whisper.files.values()])
    assert contents[0] == contents[1]


def test_no_marker_is_left(tmp_path):
    t5 = exported("t5", tmp_path)
    fuse(t5)
    for path in t5.files.values():
        assert MARKERS not in {node.domain for node in ir.load(path).graph.all_nodes()}
