"""The rule for bidirectional attention, on graphs of one attention: what it makes, and what it must leave alone."""

import numpy as np
import onnx
import pytest
from graph_rules import model, operators, rewrite, run

from rocline.custom_ops.cached_attention.rule_bidirectional import Bidirectional

HEADS, HEAD = 3, 8
WIDTH = HEADS * HEAD
SPLIT = "int64[4] split = {0, 0, 3, 8}"
INPUTS = f"float[b, s, {WIDTH}] q, float[b, t, {WIDTH}] k, float[b, t, {WIDTH}] v"


def attention(
    *,
    inputs=INPUTS,
    outputs=f"float[b, s, {WIDTH}] y",
    before="",
    scores="scores = MatMul(qh, kt)",
    softmax="p = Softmax <axis = -1> (scores)",
    value="vh",
    merge="yt = Transpose <perm = [0, 2, 1, 3]> (yh)",
    after="",
):
    return model(
        f"""
        graph ({inputs}) => ({outputs}) <{SPLIT}, int64[3] merged = {{0, 0, {WIDTH}}}>
        {{
            {before}
            q4 = Reshape(q, split)
            qh = Transpose <perm = [0, 2, 1, 3]> (q4)
            k4 = Reshape(k, split)
            kt = Transpose <perm = [0, 2, 3, 1]> (k4)
            v4 = Reshape(v, split)
            vh = Transpose <perm = [0, 2, 1, 3]> (v4)
            {scores}
            {softmax}
            yh = MatMul(p, {value})
            {merge}
            y = Reshape(yt, merged)
            {after}
        }}"""
    )


def feeds(**more):
    rng = np.random.default_rng(0)
    sizes = {"q": 5, "k": 7, "v": 7}
    made = {name: rng.standard_normal((3, size, WIDTH), np.float32) for name, size in sizes.items()}
    return made | more


def numbers(proto):
    (node,) = (node for node in proto.graph.node if node.op_type == "CachedAttention")
    found = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    return node, found


SCALED = "c = Constant <value_float = 0.5> ()"


@pytest.mark.parametrize(
    ("scale", "parts"),
    [
        (1.0, {}),
        (0.5, {"scores": f"{SCALED} raw = MatMul(qh, kt) scores = Mul(raw, c)"}),
        (2.0, {"scores": f"{SCALED} raw = MatMul(qh, kt) scores = Div(raw, c)"}),
        (0.25, {"scores": f"{SCALED} qs = Mul(qh, c) ks = Mul(c, kt) scores = MatMul(qs, ks)"}),
    ],
)
def test_one_operator_with_the_scale(scale, parts):
    before = attention(**parts)
    after, outcome = rewrite(before, Bidirectional())
    assert (outcome.matched, outcome.refused) == (1, ())
    node, attributes = numbers(after)
    assert attributes == {"heads": HEADS, "kv_heads": HEADS, "scale": pytest.approx(scale), "causal": 0}
    assert node.domain == "rocline"
    assert len(node.input) == 4
    assert sorted(operators(after)) == sorted(
        [*["Reshape", "Transpose"] * 2, "Shape", "Gather", "ConstantOfShape", "CachedAttention"]
    )
    np.testing.assert_allclose(run(after, **feeds())["y"], run(before, **feeds())["y"], atol=2e-6)


PADDING = """
    axes = Constant <value_ints = [1, 2]> ()
    wide = Unsqueeze(attention_mask, axes)
    seen = Cast <to = 1> (wide)
    one = Constant <value_float = 1.0> ()
    hidden = Sub(one, seen)
    lowest = Constant <value_float = -3.4e38> ()
    padding = Mul(hidden, lowest)
"""


def test_a_mask_of_the_input_becomes_positions():
    before = attention(
        inputs=f"{INPUTS}, int64[b, t] attention_mask",
        before=PADDING,
        scores="raw = MatMul(qh, kt) scores = Add(raw, padding)",
    )
    after, outcome = rewrite(before, Bidirectional())
    assert outcome.matched == 1
    assert [node.input[0] for node in after.graph.node if node.op_type == "Sub"] == ["attention_mask"]
    assert {"Unsqueeze", "Cast", "Mul"}.isdisjoint(operators(after))
    mask = np.array([[1] * 7, [0, 0, 0, 1, 1, 0, 1], [1, 0, 0, 0, 0, 0, 0]])
    given = feeds(attention_mask=mask)
    np.testing.assert_allclose(run(after, **given)["y"], run(before, **given)["y"], atol=2e-6)


@pytest.mark.parametrize(
    "bias",
    [
        "lowest = Constant <value_float = 3.4e38> () bias = Mul(hidden, lowest)",
        "lowest = Constant <value_float = -1.0> () bias = Mul(hidden, lowest)",
        "lowest = Constant <value_float = -3.4e38> () bias = Mul(seen, lowest)",
        "lowest = Constant <value_float = -3.4e38> () some = Mul(hidden, lowest) bias = Add(some, one)",
    ],
)
def test_what_only_looks_like_a_padding_mask_stays_a_bias(bias):
    before = attention(
        inputs=f"{INPUTS}, int64[b, t] attention_mask",
        before=f"""
            axes = Constant <value_ints = [1, 2]> ()
            wide = Unsqueeze(attention_mask, axes)
            seen = Cast <to = 1> (wide)
            one = Constant <value_float = 1.0> ()
            hidden = Sub(one, seen)
            {bias}
        """,
        scores="raw = MatMul(qh, kt) scores = Add(bias, raw)",
    )
    after, outcome = rewrite(before, Bidirectional())
    assert outcome.matched == 1
    node, _ = numbers(after)
    assert len(node.input) == 5
    given = feeds(attention_mask=np.array([[1] * 7, [0, 1, 0, 1, 1, 0, 1], [1, 1, 0, 0, 0, 0, 0]]))
    np.testing.assert_allclose(run(after, **given)["y"], run(before, **given)["y"], atol=2e-6)


# Hides nothing of so few tokens as a mask is tried out on.
COUNTED = """
    shape = Shape <start = 1, end = 2> (attention_mask)
    tokens = Squeeze(shape)
    zero = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    place = Range(zero, tokens, step)
    second = Constant <value_ints = [1]> ()
    row = Unsqueeze(place, second)
    apart = Sub(row, place)
    far = Abs(apart)
    most = Constant <value_int = 8> ()
    outside = Greater(far, most)
    excluded = Cast <to = 1> (outside)
"""
STORED = """
    shape = Shape <start = 1, end = 2> (attention_mask)
    start = Constant <value_ints = [0, 0]> ()
    end = Concat <axis = 0> (shape, shape)
    excluded = Slice(band, start, end)
"""


@pytest.mark.parametrize("window", [COUNTED, STORED])
def test_a_window_wider_than_what_masks_are_tried_on_stays_a_bias(window):
    before = attention(
        inputs=INPUTS.replace("s", "t") + ", int64[b, t] attention_mask",
        outputs=f"float[b, t, {WIDTH}] y",
        before=PADDING + window + "limit = Mul(excluded, lowest) bias = Min(padding, limit)",
        scores="raw = MatMul(qh, kt) scores = Add(raw, bias)",
    )
    band = (np.abs(np.subtract.outer(np.arange(32), np.arange(32))) > 8).astype(np.float32)
    if window is STORED:
        before.graph.initializer.append(onnx.numpy_helper.from_array(band, "band"))
    after, outcome = rewrite(before, Bidirectional())
    assert outcome.matched == 1
    node, _ = numbers(after)
    assert len(node.input) == 5
    rng = np.random.default_rng(2)
    given = {name: rng.standard_normal((2, 20, WIDTH), np.float32) for name in "qkv"}
    given["attention_mask"] = np.array([[1] * 20, [1] * 14 + [0] * 6])
    np.testing.assert_allclose(run(after, **given)["y"], run(before, **given)["y"], atol=2e-6)


def test_a_bias_and_keys_with_heads_in_front():
    """What a decoder with a growing cache has."""
    before = attention(
        inputs=f"float[b, s, {WIDTH}] q, float[b, {HEADS}, t, {HEAD}] past, float[b, {HEADS}, t, {HEAD}] pastv, "
        f"float[1, {HEADS}, s, t] bias",
        before="k = Identity(q) v = Identity(q)",
        scores="kp = Transpose <perm = [0, 1, 3, 2]> (past) raw = MatMul(qh, kp) scores = Add(raw, bias)",
        softmax="p0 = Softmax <axis = -1> (scores) nan = IsNaN(p0) zero = Constant <value_float = 0.0> () "
        "p = Where(nan, zero, p0)",
        value="pastv",
    )
    after, outcome = rewrite(before, Bidirectional())
    assert (outcome.matched, outcome.refused) == (1, ())
    node, _ = numbers(after)
    assert (node.input[1], node.input[2], node.input[4]) == ("past", "pastv", "bias")
    rng = np.random.default_rng(1)
    caches = {name: rng.standard_normal((3, HEADS, 7, HEAD), np.float32) for name in ("past", "pastv")}
    bias = np.where(rng.random((1, HEADS, 5, 7)) < 0.5, -np.inf, rng.standard_normal((1, HEADS, 5, 7)))
    bias[:, :, 0] = -np.inf
    given = {"q": feeds()["q"], **caches, "bias": bias.astype(np.float32)}
    np.testing.assert_allclose(run(after, **given)["y"], run(before, **given)["y"], atol=2e-6)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"softmax": "p = Softmax <axis = 2> (scores)"}, "its softmax is not over the keys"),
        (
            {"outputs": f"float[b, s, {WIDTH}] y, float[b, {HEADS}, s, t] p"},
            "its scores or probabilities are used elsewhere too",
        ),
        ({"after": "z = Relu(scores)", "outputs": f"float[b, s, {WIDTH}] y, float[b, {HEADS}, s, t] z"},
         "its scores or probabilities are used elsewhere too"),
        ({"merge": "yt = Identity(yh)"}, "its heads are not merged by a transpose and a reshape"),
        ({"value": "v4x", "before": "v4x0 = Reshape(v, split) v4x = Transpose <perm = [0, 2, 3, 1]> (v4x0)"},
         "the heads of its values have no known size"),
        (
            {"inputs": f"{INPUTS}, float[s, t] bias", "scores": "raw = MatMul(qh, kt) scores = Add(raw, bias)"},
            "the shape of its mask is [s,t], expected four dimensions",
        ),
        (
            {"inputs": f"{INPUTS}, float[b, 1, 1, 1] bias", "scores": "raw = MatMul(qh, kt) scores = Add(raw, bias)"},
            "its mask is one number for all keys",
        ),
        (
            {"scores": "qr = Relu(qh) scores = MatMul(qr, kt)"},
            "its queries are not split into heads by a reshape and a transpose",
        ),
    ],
)  # fmt: skip
def test_what_must_stay_as_it_is(parts, reason):
    before = attention(**parts)
    after, outcome = rewrite(before, Bidirectional())
    assert outcome.matched == 0
    assert [entry.reason for entry in outcome.refused] == [reason]
    assert "CachedAttention" not in operators(after)


def test_heads_that_are_too_large():
    text = """
        graph (float[b, s, 512] q) => (float[b, s, 512] y)
        <int64[4] split = {0, 0, 1, 512}, int64[3] merged = {0, 0, 512}>
        {
            q4 = Reshape(q, split)
            qh = Transpose <perm = [0, 2, 1, 3]> (q4)
            kt = Transpose <perm = [0, 2, 3, 1]> (q4)
            scores = MatMul(qh, kt)
            p = Softmax <axis = -1> (scores)
            yh = MatMul(p, qh)
            yt = Transpose <perm = [0, 2, 1, 3]> (yh)
            y = Reshape(yt, merged)
        }"""
    _, outcome = rewrite(model(text), Bidirectional())
    assert [entry.reason for entry in outcome.refused] == ["its heads have 512 elements, expected at most 256"]


def test_a_softmax_that_is_no_attention_is_not_even_refused():
    text = "graph (float[b, 4] x, float[4, 4] w) => (float[b, 4] y) { h = MatMul(x, w) y = Softmax <axis = -1> (h) }"
    _, outcome = rewrite(model(text), Bidirectional())
    assert (outcome.matched, outcome.refused) == (0, ())
