"""The guard alone, on graphs as the tracer could leave them."""

import onnx
import pytest
from onnx import TensorProto, helper

from rocline.custom_ops.rewriting import MARKERS
from rocline.export.markers import Refused, guard

PASTS = ("past_key_values.0.key", "past_key_values.0.value")
PRESENTS = ("present.0.key", "present.0.value")


def marker(op_type, inputs, outputs):
    return helper.make_node(op_type, inputs, outputs, domain=MARKERS)


def nodes(**changed):
    """One layer as it should be, with some nodes in other words."""
    return {
        "table": marker("RotaryTable", ["position_ids", "cos_rows", "sin_rows"], ["cos", "sin"]),
        "key": marker("CacheAppend", [PASTS[0], "k", "position_ids"], [PRESENTS[0]]),
        "value": marker("CacheAppend", [PASTS[1], "v", "position_ids"], [PRESENTS[1]]),
        "attention": marker("Attention", ["q", *PRESENTS, "position_ids"], ["attended"]),
        "last": marker("LastToken", ["attended", "position_ids"], ["logits"]),
        **changed,
    }


def check(tmp_path, parts, layers=1):
    def values(names):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]

    graph = helper.make_graph(
        [node for node in parts.values() if node is not None],
        "layer",
        values([*PASTS, "position_ids", "q", "k", "v", "cos_rows", "sin_rows"]),
        values(["logits", *PRESENTS]),
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    return guard.check(tmp_path / "model.onnx", layers)


def test_a_layer_as_it_should_be(tmp_path):
    renamed = nodes(
        positions=helper.make_node("Identity", ["position_ids"], ["same"]),
        table=marker("RotaryTable", ["same", "cos_rows", "sin_rows"], ["cos", "sin"]),
    )
    for parts in (nodes(), renamed):
        assert check(tmp_path, parts) == {
            "RotaryTable": 1,
            "CacheAppend": 2,
            "Attention": 1,
            "LastToken": 1,
        }


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"value": None}, "1 cache appends and 1 attentions went through the markers, expected 2 and 1"),
        (
            {"again": marker("Attention", ["q", *PRESENTS, "position_ids"], ["unused"])},
            "2 cache appends and 2 attentions",
        ),
        (
            {"length": helper.make_node("Shape", [PASTS[0]], ["size"])},
            r"past_key_values\.0\.key: is read by Shape, expected one append alone",
        ),
        (
            {"value": marker("CacheAppend", [PASTS[0], "v", "position_ids"], [PRESENTS[1]])},
            r"past_key_values\.0\.key: is read by several appends",
        ),
        (
            {
                "key": marker("CacheAppend", [PASTS[0], "k", "position_ids"], [PRESENTS[1]]),
                "value": marker("CacheAppend", [PASTS[1], "v", "position_ids"], [PRESENTS[0]]),
            },
            r"present\.0\.key: is not what past_key_values\.0\.key became",
        ),
        (
            {"attention": marker("Attention", ["q", *PRESENTS[::-1], "position_ids"], ["attended"])},
            r"present\.0\.key: is read by Attention, expected one attention",
        ),
        (
            {"use": helper.make_node("Neg", [PRESENTS[1]], ["used"])},
            r"present\.0\.value: is read by Attention, Neg, expected one attention",
        ),
        (
            {"table": marker("RotaryTable", ["k", "cos_rows", "sin_rows"], ["cos", "sin"])},
            "RotaryTable: its positions are not the graph's position_ids as they are",
        ),
        ({"last": None}, "output embeddings are used 0 times, expected once"),
    ],
)
def test_another_graph_is_refused(tmp_path, changed, reason):
    with pytest.raises(Refused, match=reason):
        check(tmp_path, nodes(**changed))


def test_a_layer_that_the_graph_lacks_is_refused(tmp_path):
    with pytest.raises(Refused, match="2 cache appends and 1 attentions went through the markers, expected 4 and 2"):
        check(tmp_path, nodes(), layers=2)
