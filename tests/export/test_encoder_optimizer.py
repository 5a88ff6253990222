"""Fused encoders: which nodes come out, that the numbers stay, and where nothing may be fused."""

import dataclasses
import logging
from collections import Counter

import numpy as np
import onnx
import pytest
from exported import exported

from rocline.custom_ops.rewriting import Outcome, Refusal
from rocline.export import dtypes, encoder_optimizer, parity, targets
from rocline.export.samples import Samples


def optimize(subject, target="rocm", **options):
    return encoder_optimizer.optimize(
        subject.path,
        model_type=subject.model.config.model_type,
        heads=4,
        hidden_size=32,
        target=targets.load(target),
        **options,
    )


def measure(subject, bound=1e-5):
    return parity.measure(
        subject.files,
        subject.cases(),
        bound=bound,
        against="torch",
        inputs="",
        target=targets.load("rocm"),
        torch_model=subject.model,
    )


@pytest.mark.parametrize(
    ("kind", "fused"),
    [
        (
            "bert",
            {"Attention": 2, "BiasGelu": 2, "EmbedLayerNormalization": 1, "SkipLayerNormalization": 4},
        ),
        (
            "distilbert",
            {"Attention": 2, "BiasGelu": 2, "EmbedLayerNormalization": 1, "SkipLayerNormalization": 4},
        ),
        ("roberta", {"Attention": 2, "BiasGelu": 3, "SkipLayerNormalization": 4}),
    ],
)
def test_what_is_fused_keeps_the_numbers(kind, fused, tmp_path):
    subject = exported(kind, tmp_path)
    outcomes = optimize(subject)
    model = onnx.load(subject.path)
    operators = Counter(node.op_type for node in model.graph.node if node.domain == "com.microsoft")
    assert operators == fused
    assert outcomes == [Outcome(encoder_optimizer.RULE, op, count) for op, count in sorted(fused.items())]
    assert {entry.domain for entry in model.opset_import} == {"", "com.microsoft"}
    measure(subject)


def test_padding_on_the_left_is_hidden_too(tmp_path):
    """An attention that took a count of tokens for a mask would be right for padding on the right only."""
    bert = exported("bert", tmp_path)
    optimize(bert)
    batch = {name: array.copy() for name, array in bert.samples.inputs[0].items()}
    for row, mask in enumerate(bert.samples.inputs[0]["attention_mask"]):
        for array in batch.values():
            array[row] = np.roll(array[row], int((mask == 0).sum()))
    assert not batch["attention_mask"][:, 0].all()
    measure(dataclasses.replace(bert, samples=Samples([batch], "padded on the left")))


def test_fused_then_fp16(tmp_path):
    bert = exported("bert", tmp_path)
    optimize(bert, dtype="fp16")
    dtypes.convert(bert.path, "fp16", targets.load("rocm"))
    assert Counter(node.op_type for node in onnx.load(bert.path).graph.node)["Attention"] == 2
    measure(bert, bound=parity.BOUNDS["fp16"])


@pytest.mark.parametrize(("kind", "target"), [("bert", "portable"), ("bert", "migraphx"), ("llama", "rocm")])
def test_where_it_has_nothing_to_do(kind, target, tmp_path):
    subject = exported(kind, tmp_path)
    before = subject.path.read_bytes()
    assert optimize(subject, target) == []
    assert subject.path.read_bytes() == before


def test_operators_that_the_target_lacks_in_a_dtype(tmp_path):
    bert = exported("bert", tmp_path)
    before = bert.path.read_bytes()
    (outcome,) = optimize(bert, dtype="bf16")
    reason = "the target has no Attention, BiasGelu, EmbedLayerNormalization, SkipLayerNormalization in bf16"
    assert (outcome.matched, outcome.refused) == (0, (Refusal("model.onnx", reason),))
    assert bert.path.read_bytes() == before


def test_an_operator_the_target_must_never_get(tmp_path):
    bert = exported("bert", tmp_path)
    before = bert.path.read_bytes()
    target = dataclasses.replace(targets.load("rocm"), never={"Attention": "for this test"})
    (outcome,) = encoder_optimizer.optimize(bert.path, model_type="bert", heads=4, hidden_size=32, target=target)
    assert outcome.refused[0].reason == "the target has no Attention in fp32"
    assert bert.path.read_bytes() == before


def test_the_same_bytes_every_time_and_no_noise(tmp_path, capfd, caplog):
    contents = []
    logging.disable(logging.NOTSET)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        bert = exported("bert", tmp_path / name)
        optimize(bert)
        contents.append(bert.path.read_bytes())
    assert contents[0] == contents[1]
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logging.root.manager.disable == logging.NOTSET
