"""Puts SwiGlu in the place of a marked activation times what it gates, and packs the projections that it reads."""

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult

from rocline.custom_ops import DOMAIN
from rocline.custom_ops.rewriting import (
    MARKERS,
    Context,
    Outcome,
    PatternRule,
    Refusal,
    Rewrite,
    Rule,
    Stage,
    failed,
)
from rocline.custom_ops.rule_values import columns, pack, same_shape

# Of the operator (spec.py).
_KINDS = ("silu", "gelu", "gelu_tanh")


class _Gated(Rewrite):
    """``activation(gate) * up``."""

    def pattern(self, op: Any, gate: Any, up: Any, kind: Any) -> Any:
        return op.Mul(op.Activation(gate, kind=kind, _domain=MARKERS), up)

    def check(self, context: MatchContext, gate: ir.Value, up: ir.Value, kind: ir.Attr) -> MatchResult:
        if kind.as_string() not in _KINDS:
            return failed(f"activation {kind.as_string()!r}, SwiGlu has {', '.join(_KINDS)}")
        if not same_shape(gate, up):
            return failed("the gate and what it gates are not known to have the same shape")
        return MatchResult()

    def rewrite(self, op: Any, gate: ir.Value, up: ir.Value, kind: ir.Attr) -> Any:
        return op.SwiGlu(gate, up, activation=kind.as_string(), _domain=DOMAIN)


class Packed(Rule):
    """SwiGlu of two projections, or of the two halves of one -> SwiGlu of one projection."""

    name = "packed gate, up"
    made = "SwiGlu"
    stage = Stage.GATE

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Rewrites every SwiGlu of the main graph that is not packed."""
        matched, refused = 0, []
        for node in list(model.graph):
            if (node.domain, node.op_type) != (DOMAIN, "SwiGlu") or len(node.inputs) != 2:
                continue
            values = [value for value in node.inputs if value is not None]
            packed = _pack(values, node)
            if isinstance(packed, str):
                refused.append(Refusal(node.name or "", packed))
                continue
            node.replace_input_with(0, packed)
            node.resize_inputs(1)
            matched += 1
        return Outcome(self.name, self.made, matched, tuple(refused))


def _pack(values: list[ir.Value], node: ir.Node) -> ir.Value | str:
    gate, up = (columns(value) for value in values)
    if gate is None or gate != up:
        return "its gate and what it gates are not known to be equally wide"
    return pack(values, node)


RULES = (
    PatternRule(name="gated activation", made="SwiGlu", stage=Stage.GATE, rewrites=(_Gated,), commute=True),
    Packed(),
)
