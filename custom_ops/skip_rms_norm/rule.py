"""Puts SkipRmsNorm in the place of marked norms, with the residual sum that goes into them."""

import onnx_ir as ir

from rocline.custom_ops import DOMAIN, rewriting
from rocline.custom_ops.rewriting import MARKERS, Context, Outcome, Rule, Stage, constant, insert, producer
from rocline.custom_ops.rule_values import same_shape


class PutIn(Rule):
    """A marked norm -> SkipRmsNorm; the sum of two values of one shape before it becomes the operator's own."""

    name = "skip rms norm"
    made = "SkipRmsNorm"
    stage = Stage.NORM

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Rewrites every marked norm of the main graph."""
        matched = 0
        for node in list(model.graph):
            if (node.domain, node.op_type) == (MARKERS, "RmsNorm"):
                put_in(node)
                matched += 1
        return Outcome(self.name, self.made, matched)


def put_in(node: ir.Node) -> None:
    """Lowers one marked norm, with the sum before it."""
    x, weight = node.inputs
    assert x is not None
    add = producer(x, "Add")
    summands = list(add.inputs) if add is not None else []
    adds = len(summands) == 2 and all(
        value is not None and constant(value) is None and same_shape(value, x) for value in summands
    )
    alone = len(x.uses()) == 1 and not x.is_graph_output()
    inputs = [summands[0], weight, summands[1]] if adds else [x, weight]
    outputs = insert(
        # Where the sum is used elsewhere, it may be so before the norm.
        add if adds and add is not None else node,
        "SkipRmsNorm",
        inputs,
        {"epsilon": node.attributes["epsilon"].as_float()},
        outputs=1 if alone or not adds else 2,
        domain=DOMAIN,
    )
    rewriting.replace(node.outputs[0], outputs[0])
    if len(outputs) == 2:
        rewriting.replace(x, outputs[1])


RULES = (PutIn(),)
