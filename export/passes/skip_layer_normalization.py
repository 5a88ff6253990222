"""A LayerNormalization and the sum before it become one SkipLayerNormalization, with the bias of a projection.

ONNX Runtime's operator returns the sum too, which the next residual connection reads in a model that normalises first.
"""

import onnx_ir as ir

from rocline.custom_ops import rewriting
from rocline.custom_ops.rewriting import Context, Outcome, Refusal, Rule
from rocline.custom_ops.rule_values import same_shape

_DOMAIN = "com.microsoft"


class SkipLayerNormalization(Rule):
    """The sum of two tensors of one shape, normalised over its last axis."""

    name = "residual and layer norm"
    made = "SkipLayerNormalization"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Rewrites every LayerNormalization of a sum, also in subgraphs. The shapes of values must be known."""
        matched, refused = 0, []
        for graph in (model.graph, *model.graph.subgraphs()):
            for node in list(graph):
                added = rewriting.producer(node.inputs[0], "Add") if node.op_type == "LayerNormalization" else None
                if added is None:
                    continue
                reason = _why_not(node, added, context)
                if reason is None:
                    _rewrite(node, added)
                    matched += 1
                else:
                    refused.append(Refusal(node.name or node.op_type, reason))
            graph.sort()
        return Outcome(self.name, self.made, matched, tuple(refused))


def _why_not(norm: ir.Node, added: ir.Node, context: Context) -> str | None:
    if not context.runs("SkipLayerNormalization", _DOMAIN):
        return f"the target has no SkipLayerNormalization in {context.dtype}"
    if len(norm.outputs) > 1:
        return "its mean or deviation is read"
    first, second = (value.shape if value is not None else None for value in added.inputs)
    if first is None or second is None or any(rewriting.constant(value) is not None for value in added.inputs):
        return "what it sums has no known shape, or is a constant"
    if len(first) != 3 or norm.attributes.get_int("axis", -1) not in (-1, 2):
        return "it is not over the last of three axes"
    if not same_shape(*added.inputs):  # type: ignore[arg-type]
        return "the shapes that it sums may differ"
    return None


def _rewrite(norm: ir.Node, added: ir.Node) -> None:
    """Puts the operator where the norm is; the sum is its fourth output where anything else reads it."""
    total = added.outputs[0]
    first, second = added.inputs
    bias = None
    for value, other in ((first, second), (second, first)):
        source, vector = _biased(value)
        if vector is not None:
            first, second, bias = source, other, vector
            break
    _, weight, *shift = norm.inputs
    summed = len(list(total.uses())) > 1 or total.is_graph_output()
    made = rewriting.insert(
        norm,
        "SkipLayerNormalization",
        [first, second, weight, shift[0] if shift else None, bias],
        {"epsilon": norm.attributes.get_float("epsilon", 1e-5)},
        outputs=4 if summed else 1,
        domain=_DOMAIN,
    )
    rewriting.replace(norm.outputs[0], made[0])
    if summed:
        rewriting.replace(total, made[3])
        for unused in made[1:3]:
            unused.name = ""


def _biased(value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None]:
    """Returns a projection before its bias vector, and the bias, where nothing else reads their sum."""
    node = rewriting.producer(value, "Add")
    if value is None or node is None or len(list(value.uses())) > 1 or value.is_graph_output():
        return value, None
    for vector, source in (node.inputs, tuple(reversed(node.inputs))):
        array = rewriting.constant(vector)
        if source is not None and array is not None and array.ndim == 1 and array.size > 1:
            return source, vector
    return value, None
