"""LayerNormalization with the sum before it: which operator stands for them, and where it must not."""

import numpy as np
import pytest
from graph_rules import model, operators, rewrite, run

from rocline.export.passes.skip_layer_normalization import SkipLayerNormalization

RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.standard_normal(8, np.float32) for name in ("weight", "shift", "bias")}
IN = "float[b, s, 8] a, float[b, s, 8] c"
OUT = "float[b, s, 8] y"
NORM = "y = LayerNormalization <axis = -1, epsilon = 0.001> (sum, weight, shift)"


def norm(body, inputs=IN, outputs=OUT):
    return model(f"graph ({inputs}) => ({outputs}) {{ {body} }}", **WEIGHTS)


def feeds(proto, tokens=5):
    sizes = {"b": 3, "s": tokens, "t": 1}
    shapes = {
        value.name: [dim.dim_value or sizes[dim.dim_param] for dim in value.type.tensor_type.shape.dim]
        for value in proto.graph.input
    }
    return {name: np.random.default_rng(1).standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("body", "outputs", "made", "values"),
    [
        (f"sum = Add(a, c) {NORM}", OUT, ["SkipLayerNormalization"], 1),
        (f"p = Add(a, bias) sum = Add(p, c) {NORM}", OUT, ["SkipLayerNormalization"], 1),
        (f"p = Add(bias, a) sum = Add(c, p) {NORM}", OUT, ["SkipLayerNormalization"], 1),
        (f"sum = Add(a, c) {NORM} z = Neg(sum)", f"{OUT}, float[b, s, 8] z", ["SkipLayerNormalization", "Neg"], 4),
        (f"p = Add(a, bias) sum = Add(p, c) {NORM}", f"{OUT}, float[b, s, 8] sum", ["SkipLayerNormalization"], 4),
        ("sum = Add(a, c) y = LayerNormalization <axis = 2> (sum, weight)", OUT, ["SkipLayerNormalization"], 1),
    ],
)
def test_one_operator_for_the_sum_and_the_norm(body, outputs, made, values):
    before = norm(body, outputs=outputs)
    after, outcome = rewrite(before, SkipLayerNormalization())
    assert (outcome.matched, outcome.refused) == (1, ())
    assert operators(after) == made
    assert len(after.graph.node[0].output) == values
    expected, got = run(before, **feeds(before)), run(after, **feeds(after))
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=2e-6)


@pytest.mark.parametrize(
    ("body", "inputs", "outputs", "reason"),
    [
        (f"sum = Add(a, c) {NORM}", "float[b, s, 8] a, float[b, t, 8] c", OUT, "the shapes that it sums may differ"),
        (f"sum = Add(a, c) {NORM}", "float[b, s, 8] a, float[1, s, 8] c", OUT, "the shapes that it sums may differ"),
        (
            f"sum = Add(a, bias) {NORM}",
            "float[b, s, 8] a",
            OUT,
            "what it sums has no known shape, or is a constant",
        ),
        (
            f"sum = Add(a, c) {NORM}",
            "float[b, 8] a, float[b, 8] c",
            "float[b, 8] y",
            "it is not over the last of three axes",
        ),
        (
            "sum = Add(a, c) y, mean = LayerNormalization (sum, weight, shift)",
            IN,
            f"{OUT}, float[b, s, 1] mean",
            "its mean or deviation is read",
        ),
    ],
)
def test_what_must_stay_as_it_is(body, inputs, outputs, reason):
    before = norm(body, inputs, outputs)
    after, outcome = rewrite(before, SkipLayerNormalization())
    assert outcome.matched == 0
    assert [entry.reason for entry in outcome.refused] == [reason]
    assert "SkipLayerNormalization" not in operators(after)


@pytest.mark.parametrize(("target", "dtype"), [("rocm", "bf16"), ("portable", "fp32")])
def test_a_target_without_the_operator(target, dtype):
    _, outcome = rewrite(norm(f"sum = Add(a, c) {NORM}"), SkipLayerNormalization(), target=target, dtype=dtype)
    assert [entry.reason for entry in outcome.refused] == [f"the target has no SkipLayerNormalization in {dtype}"]


def test_a_norm_of_no_sum_is_not_even_refused():
    before = norm("sum = Neg(a) " + NORM, "float[b, s, 8] a")
    _, outcome = rewrite(before, SkipLayerNormalization())
    assert (outcome.matched, outcome.refused) == (0, ())
