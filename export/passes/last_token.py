"""The head of a decoder on the last position alone, without a transposed copy of a tied embedding."""

import numpy as np
import onnx_ir as ir

from rocline.custom_ops import rewriting
from rocline.custom_ops.rewriting import MARKERS, Context, Outcome, Rule, constant, insert, producer
from rocline.custom_ops.rule_values import columns

_LOGITS = "logits"


class LastToken(Rule):
    """A marked choice of each row's last token -> ArgMax over its positions, and GatherND or GatherElements.

    GatherElements, which wants an index for each element, serves where the target has no GatherND of the dtype.
    The projection to logits behind it becomes one product of matrices [B, n] and [n, vocabulary]. Where the weight is
    the embedding [vocabulary, n] transposed, it is Gemm's transB: a runtime that folds the Transpose would hold the
    largest tensor of a small model twice.
    """

    name = "last token"
    made = "GatherND"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Rewrites every marked choice of the main graph."""
        matched = 0
        for node in list(model.graph):
            if (node.domain, node.op_type) == (MARKERS, "LastToken"):
                _choose(node, model.graph, context)
                matched += 1
        if matched:
            _one_position(model.graph)
        return Outcome(self.name, self.made, matched)


def _choose(node: ir.Node, graph: ir.Graph, context: Context) -> None:
    hidden, position_ids = node.inputs
    assert hidden is not None
    # Positions fit float32 exactly up to 2^24; ROCm has no ArgMax of integers.
    (positions,) = insert(node, "Cast", [position_ids], {"to": ir.DataType.FLOAT})
    (last,) = insert(node, "ArgMax", [positions], {"axis": 1, "keepdims": 1})
    axes = rewriting.initializer(graph, "token_axis", np.array([1], np.int64))
    width = columns(hidden)
    if context.runs("GatherND") or width is None:
        (chosen,) = insert(node, "GatherND", [hidden, last], {"batch_dims": 1})
    else:
        sizes = rewriting.initializer(graph, "token_sizes", np.array([1, 1, width], np.int64))
        (place,) = insert(node, "Unsqueeze", [last, axes])
        (places,) = insert(node, "Expand", [place, sizes])
        (kept,) = insert(node, "GatherElements", [hidden, places], {"axis": 1})
        (chosen,) = insert(node, "Squeeze", [kept, axes])
    chosen.type = hidden.type
    if hidden.shape is not None:
        chosen.shape = ir.Shape([hidden.shape[0], hidden.shape[-1]])
    for user, _ in list(node.outputs[0].uses()):
        if user.op_type in ("Reshape", "Squeeze") and _is_row(user.outputs[0], columns(chosen)):
            rewriting.replace(user.outputs[0], chosen)
        if user.op_type == "MatMul" and user.inputs[0] is node.outputs[0] and _is_matrix(user.inputs[1]):
            product = _product(chosen, user)
            (logits,) = insert(user, "Unsqueeze", [product, axes])
            rewriting.replace(user.outputs[0], logits)
    if node.outputs[0].uses() or node.outputs[0].is_graph_output():
        (unsqueezed,) = insert(node, "Unsqueeze", [chosen, axes])
        rewriting.replace(node.outputs[0], unsqueezed)


def _product(x: ir.Value, product: ir.Node) -> ir.Value:
    weight = product.inputs[1]
    transpose = producer(weight, "Transpose")
    if transpose is None:
        (logits,) = insert(product, "MatMul", [x, weight])
    else:
        (logits,) = insert(product, "Gemm", [x, transpose.inputs[0]], {"transB": 1})
    words = product.outputs[0].shape
    logits.type = x.type
    if x.shape is not None and words is not None:
        logits.shape = ir.Shape([x.shape[0], words[-1]])
    return logits


def _is_matrix(weight: ir.Value | None) -> bool:
    transpose = producer(weight, "Transpose")
    tensor = None if weight is None else (transpose.inputs[0] if transpose is not None else weight)
    array = constant(tensor)
    return array is not None and array.ndim == 2


def _is_row(value: ir.Value, size: int | None) -> bool:
    """Tells whether a value made of [B, 1, n] is [B, n]."""
    return size is not None and value.shape is not None and len(value.shape) == 2 and columns(value) == size


def _one_position(graph: ir.Graph) -> None:
    for output in graph.outputs:
        if output.name == _LOGITS and output.shape is not None and len(output.shape) == 3:
            output.shape = ir.Shape([output.shape[0], 1, output.shape[2]])
