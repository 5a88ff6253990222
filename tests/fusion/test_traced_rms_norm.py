"""RMS norms that were traced node by node: which become SkipRmsNorm, and what is none."""

import numpy as np
import pytest
from graph_rules import model, operators, rewrite, run

from rocline.custom_ops.skip_rms_norm.rule_traced import Traced

RNG = np.random.default_rng(0)
WEIGHTS = {"weight": RNG.standard_normal(8, np.float32), "matrix": RNG.standard_normal((8, 8), np.float32)}
START = """
    two = Constant <value_float = 2.0> () last = Constant <value_ints = [-1]> () e = Constant <value_float = 0.001> ()
    one = Constant <value_float = 1.0> ()
"""
ROOT = "p = Pow(x, two) m = ReduceMean <keepdims = 1> (p, last) a = Add(m, e) r = Sqrt(a)"
INVERSE = f"{START} {ROOT} i = Div(one, r) n = Mul(x, i) y = Mul(weight, n)"
DIVISION = f"{START} {ROOT} n = Div(x, r) y = Mul(n, weight)"
PRODUCT = INVERSE.replace("Pow(x, two)", "Mul(x, x)").replace("Div(one, r)", "Reciprocal(r)")
IN, OUT = "float[b, s, 8] x", "float[b, s, 8] y"
X = RNG.standard_normal((2, 5, 8), np.float32)


def norm(body, inputs=IN, outputs=OUT):
    return model(f"graph ({inputs}) => ({outputs}) {{ {body} }}", **WEIGHTS)


@pytest.mark.parametrize("body", [INVERSE, DIVISION, PRODUCT])
def test_every_arrangement_becomes_one_operator(body):
    before = norm(body)
    after, outcome = rewrite(before, Traced())
    assert (outcome.matched, outcome.refused) == (1, ())
    assert operators(after) == ["SkipRmsNorm"]
    np.testing.assert_allclose(run(after, x=X)["y"], run(before, x=X)["y"], atol=2e-6)


@pytest.mark.parametrize("outputs", [OUT, f"{OUT}, float[b, s, 8] x"])
def test_the_sum_before_it_goes_along(outputs):
    before = norm(f"x = Add(h, g) {INVERSE}", "float[b, s, 8] h, float[b, s, 8] g", outputs)
    after, _ = rewrite(before, Traced())
    assert operators(after) == ["SkipRmsNorm"]
    given = {"h": X, "g": X[::-1].copy()}
    expected, got = run(before, **given), run(after, **given)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=2e-6)


def test_a_sum_of_two_shapes_stays():
    before = norm(f"x = Add(h, g) {DIVISION}", "float[b, s, 8] h, float[1, s, 8] g")
    after, outcome = rewrite(before, Traced())
    assert outcome.matched == 1
    assert operators(after) == ["Add", "SkipRmsNorm"]


NOT_THIS_NORM = "the root of its mean of squares is not what divides the same value"
NO_WEIGHT = "it has no weight of one axis, or its result is read before the weight"


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        (INVERSE.replace("[-1]", "[1]"), OUT, "its mean is not over the last axis"),
        (INVERSE.replace("Mul(x, i)", "Mul(p, i)"), OUT, NOT_THIS_NORM),
        (INVERSE.replace("Div(one, r)", "Div(two, r)"), OUT, NOT_THIS_NORM),
        (DIVISION.replace("Div(x, r)", "Div(r, x)"), OUT, NOT_THIS_NORM),
        (INVERSE.replace("weight, n", "x, n"), OUT, NO_WEIGHT),
        (INVERSE, f"{OUT}, float[b, s, 8] n", NO_WEIGHT),
        (INVERSE, f"{OUT}, float[b, s, 1] i", NOT_THIS_NORM),
    ],
)
def test_what_must_stay_as_it_is(body, outputs, reason):
    before = norm(body, outputs=outputs)
    after, outcome = rewrite(before, Traced())
    assert (outcome.matched, [entry.reason for entry in outcome.refused]) == (0, [reason])
    assert "SkipRmsNorm" not in operators(after)


@pytest.mark.parametrize(
    "body",
    [
        INVERSE.replace("Pow(x, two)", "Pow(x, e)"),
        f"{START} y = Sqrt(x)",
        f"{START} m = ReduceMean <keepdims = 1> (x, last) c = Sub(x, m) a = Add(c, e) y = Sqrt(a)",
    ],
)
def test_other_roots_are_not_even_refused(body):
    _, outcome = rewrite(norm(body), Traced())
    assert (outcome.matched, outcome.refused) == (0, ())
