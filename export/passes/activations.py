"""Marked activations that gate nothing: the operator that the target has, or the standard operators it is made of."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from rocline.custom_ops import rewriting
from rocline.custom_ops.rewriting import MARKERS, Context, Outcome, Refusal, Rule, insert

_CONTRIB = "com.microsoft"


class Activations(Rule):
    """SiLU and GELU: one contributed operator where the target has it in the dtype, else a few standard ones."""

    name = "activations"
    made = "Gelu"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Rewrites every marked activation of the main graph."""
        matched, refused = 0, []
        for node in list(model.graph):
            if (node.domain, node.op_type) != (MARKERS, "Activation"):
                continue
            kind = node.attributes["kind"].as_string()
            if kind not in _FUSED:
                refused.append(Refusal(node.name or "", f"activation {kind!r} is not known"))
                continue
            op_type, attributes = _FUSED[kind]
            x = node.inputs[0]
            assert x is not None
            if context.runs(op_type, _CONTRIB):
                (y,) = insert(node, op_type, [x], attributes, domain=_CONTRIB)
            else:
                y = _APART[kind](node, x)
            rewriting.replace(node.outputs[0], y)
            matched += 1
        return Outcome(self.name, self.made, matched, tuple(refused))


_FUSED: dict[str, tuple[str, dict[str, float]]] = {
    "silu": ("QuickGelu", {"alpha": 1.0}),
    "gelu": ("Gelu", {}),
    "gelu_tanh": ("FastGelu", {}),
}


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


_APART: dict[str, Callable[[ir.Node, ir.Value], ir.Value]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}
