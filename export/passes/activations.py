"""Marked activations that gate nothing: the standard operators they are made of.

What a target has of GELU in one operator, `rocline.export.passes.gelu` puts in their place, with the bias before it.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from rocline.custom_ops import rewriting
from rocline.custom_ops.rewriting import MARKERS, Context, Outcome, Refusal, Rule, insert


class Activations(Rule):
    """SiLU and GELU in standard operators; SiLU in one, where the target has QuickGelu, of which it is a case."""

    name = "activations"
    made = "Sigmoid, Erf, Tanh"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Rewrites every marked activation of the main graph."""
        matched, refused = 0, []
        for node in list(model.graph):
            if (node.domain, node.op_type) != (MARKERS, "Activation"):
                continue
            kind, x = node.attributes["kind"].as_string(), node.inputs[0]
            if kind not in _FORMULAS:
                refused.append(Refusal(node.name or "", f"activation {kind!r} is not known"))
                continue
            assert x is not None
            if kind == "silu" and context.runs("QuickGelu", "com.microsoft"):
                (y,) = insert(node, "QuickGelu", [x], {"alpha": 1.0}, domain="com.microsoft")
            else:
                y = _FORMULAS[kind](node, x)
            rewriting.replace(node.outputs[0], y)
            matched += 1
        return Outcome(self.name, self.made, matched, tuple(refused))


def _number(node: ir.Node, value: float) -> ir.Value:
    assert node.graph is not None
    return rewriting.initializer(node.graph, "number", np.array(value, np.float32))


def _silu(node: ir.Node, x: ir.Value) -> ir.Value:
    (gate,) = insert(node, "Sigmoid", [x])
    return insert(node, "Mul", [x, gate])[0]


def _gelu(node: ir.Node, x: ir.Value) -> ir.Value:
    """``x / 2 * (1 + erf(x / sqrt(2)))`` (arXiv:1606.08415)."""
    (scaled,) = insert(node, "Mul", [x, _number(node, 0.5**0.5)])
    (erf,) = insert(node, "Erf", [scaled])
    return _half_of_one_plus(node, x, erf)


def _gelu_tanh(node: ir.Node, x: ir.Value) -> ir.Value:
    """``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))``, the same source's approximation."""
    (square,) = insert(node, "Mul", [x, x])
    (bent,) = insert(node, "Mul", [square, _number(node, 0.044715 * (2 / np.pi) ** 0.5)])
    (slope,) = insert(node, "Add", [bent, _number(node, (2 / np.pi) ** 0.5)])
    (inner,) = insert(node, "Mul", [x, slope])
    (tanh,) = insert(node, "Tanh", [inner])
    return _half_of_one_plus(node, x, tanh)


def _half_of_one_plus(node: ir.Node, x: ir.Value, y: ir.Value) -> ir.Value:
    (sum_,) = insert(node, "Add", [y, _number(node, 1.0)])
    (half,) = insert(node, "Mul", [x, _number(node, 0.5)])
    return insert(node, "Mul", [half, sum_])[0]


_FORMULAS: dict[str, Callable[[ir.Node, ir.Value], ir.Value]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}
