"""GELU's forms: which operator stands for them, and what is none."""

import numpy as np
import pytest
from graph_rules import model, operators, rewrite, run

from rocline.export.passes.gelu import Gelu

ROOT = "r = Constant <value_float = 1.4142135> ()"
ONE = "one = Constant <value_float = 1.0> ()"
HALF = "half = Constant <value_float = 0.5> ()"
CUBE = "cube = Constant <value_float = 3.0> () a = Constant <value_float = 0.044715> () "
OUTER = "o = Constant <value_float = 0.7978846> ()"
ERF = f"{ROOT} {ONE} {HALF} d = Div(x, r) e = Erf(d) s = Add(e, one) m = Mul(x, s) y = Mul(m, half)"
ERF_FIRST = f"{ROOT} {ONE} {HALF} h = Mul(half, x) d = Div(x, r) e = Erf(d) s = Add(one, e) y = Mul(h, s)"
TANH = (
    f"{CUBE} {OUTER} {ONE} {HALF} p = Pow(x, cube) ap = Mul(a, p) i = Add(x, ap) oi = Mul(i, o) t = Tanh(oi) "
    "s = Add(t, one) h = Mul(x, half) y = Mul(h, s)"
)
TANH_FACTORED = (
    f"{CUBE} {OUTER} {ONE} {HALF} xx = Mul(x, x) ax = Mul(xx, a) i = Add(ax, one) ox = Mul(x, o) oi = Mul(ox, i) "
    "t = Tanh(oi) s = Add(one, t) h = Mul(x, half) y = Mul(s, h)"
)
QUICK = "q = Constant <value_float = 1.702> () d = Mul(x, q) e = Sigmoid(d) y = Mul(x, e)"
SILU = "e = Sigmoid(x) y = Mul(x, e)"


def plain(body):
    return model(f"graph (float[b, s, 4] x) => (float[b, s, 4] y) {{ {body} }}")


def biased(body, more="", outputs="float[b, s, 4] y"):
    return model(f"graph (float[b, s, 4] w) => ({outputs}) {{ x = Add(w, bias) {body} {more} }}",
                 bias=np.float32([0.1, -0.2, 0.3, 2.0]))  # fmt: skip


X = np.linspace(-8, 8, 2 * 31 * 4, dtype=np.float32).reshape(2, 31, 4)


@pytest.mark.parametrize(
    ("body", "made"),
    [
        (ERF, "Gelu"),
        (ERF_FIRST, "Gelu"),
        (TANH, "FastGelu"),
        (TANH_FACTORED, "FastGelu"),
        (QUICK, "QuickGelu"),
    ],
)
def test_every_arrangement_becomes_one_operator(body, made):
    before = plain(body)
    after, outcome = rewrite(before, Gelu())
    assert (outcome.matched, outcome.made, outcome.refused) == (1, made, ())
    assert operators(after) == [made]
    np.testing.assert_allclose(run(after, x=X)["y"], run(before, x=X)["y"], atol=2e-6)


@pytest.mark.parametrize(("body", "made"), [(ERF, "BiasGelu"), (TANH, "FastGelu")])
def test_a_bias_goes_with_it(body, made):
    before = biased(body)
    after, _ = rewrite(before, Gelu())
    assert operators(after) == [made]
    assert len(after.graph.node[0].input) == 2
    np.testing.assert_allclose(run(after, w=X)["y"], run(before, w=X)["y"], atol=2e-6)


def test_a_bias_that_is_read_elsewhere_stays():
    before = biased(ERF, more="z = Neg(x)", outputs="float[b, s, 4] y, float[b, s, 4] z")
    after, outcome = rewrite(before, Gelu())
    assert outcome.made == "Gelu"
    assert sorted(operators(after)) == ["Add", "Gelu", "Neg"]
    assert run(after, w=X).keys() == {"y", "z"}
    np.testing.assert_allclose(run(after, w=X)["y"], run(before, w=X)["y"], atol=2e-6)


@pytest.mark.parametrize(
    ("target", "dtype", "body", "reason"),
    [
        ("portable", "fp32", ERF, "the target has no Gelu in fp32"),
        ("migraphx", "fp16", TANH, "the target has no FastGelu in fp16"),
        ("rocm", "bf16", QUICK, "the target has no QuickGelu in bf16"),
    ],
)
def test_a_target_without_the_operator(target, dtype, body, reason):
    after, outcome = rewrite(plain(body), Gelu(), target=target, dtype=dtype)
    assert [entry.reason for entry in outcome.refused] == [reason]
    assert not {"Gelu", "FastGelu", "QuickGelu"} & set(operators(after))


def test_bf16_on_rocm_takes_the_operator_that_has_it():
    after, outcome = rewrite(biased(ERF), Gelu(), dtype="bf16")
    assert outcome.matched == 1
    assert operators(after) == ["Add", "Gelu"]


@pytest.mark.parametrize(
    "body",
    [
        ERF.replace("1.4142135", "1.5"),
        ERF.replace("s = Add(e, one)", "s = Add(e, r)"),
        TANH.replace("0.044715", "0.05"),
        TANH.replace("0.7978846", "0.8"),
        QUICK.replace("1.702", "1.5"),
    ],
)
def test_another_formula_is_not_taken_for_it(body):
    before = plain(body)
    after, outcome = rewrite(before, Gelu())
    assert outcome.matched == 0
    assert {entry.reason for entry in outcome.refused} <= {
        "its formula is not that of GELU nor of one of its approximations"
    }
    assert sorted(operators(after)) == sorted(op for op in operators(before) if op != "Constant")


@pytest.mark.parametrize("body", [SILU, "y = Tanh(x)", "y = Sigmoid(x)", "t = Tanh(x) y = Mul(x, t)", "y = Erf(x)"])
def test_other_uses_of_its_parts_are_not_even_refused(body):
    _, outcome = rewrite(plain(body), Gelu())
    assert (outcome.matched, outcome.refused) == (0, ())


def test_a_value_inside_that_is_read_elsewhere():
    before = model(f"graph (float[b, s, 4] x) => (float[b, s, 4] y, float[b, s, 4] e) {{ {ERF} }}")
    after, outcome = rewrite(before, Gelu())
    assert [entry.reason for entry in outcome.refused] == ["a value inside it is used elsewhere too"]
    assert "Gelu" not in operators(after)
