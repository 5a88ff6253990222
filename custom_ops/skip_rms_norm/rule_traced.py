"""Puts SkipRmsNorm in the place of norms that were traced node by node: T5's, and those of decoders without markers.

``weight * (x * (1 / sqrt(mean(x * x) + epsilon)))``, or with a division by the root, over the last axis.
"""

from dataclasses import dataclass

import onnx_ir as ir

from rocline.custom_ops import rewriting
from rocline.custom_ops.rewriting import MARKERS, Context, Outcome, Refusal, Rule, Stage, constant, producer
from rocline.custom_ops.skip_rms_norm.rule import put_in


@dataclass(frozen=True)
class _Norm:
    """What a traced norm computes, and the last node of it."""

    x: ir.Value
    weight: ir.Value
    epsilon: float
    last: ir.Node


class _Left(Exception):
    """These are the mean and the root of squares, but not of this norm; the message is the reason."""


class Traced(Rule):
    """A norm of a dozen nodes -> SkipRmsNorm, with the residual sum before it."""

    name = "traced rms norm"
    made = "SkipRmsNorm"
    stage = Stage.NORM

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Rewrites every norm, also in subgraphs. The shapes of values must be known for sums to go along."""
        matched, refused = 0, []
        for graph in (model.graph, *model.graph.subgraphs()):
            for node in [node for node in graph if node.op_type == "Sqrt"]:
                try:
                    norm = _recognise(node)
                except _Left as reason:
                    refused.append(Refusal(node.name or node.op_type, str(reason)))
                    continue
                if norm is not None:
                    _rewrite(norm)
                    matched += 1
            graph.sort()
        return Outcome(self.name, self.made, matched, tuple(refused))


def _recognise(root: ir.Node) -> _Norm | None:
    """Returns the norm that a Sqrt belongs to; None where it is of something else."""
    added = producer(root.inputs[0], "Add")
    if added is None:
        return None
    epsilon = next((array for value in added.inputs if (array := constant(value)) is not None), None)
    mean = next((node for value in added.inputs if (node := producer(value, "ReduceMean"))), None)
    x = _squared(mean.inputs[0]) if mean is not None else None
    if mean is None or x is None or epsilon is None or epsilon.size != 1:
        return None
    if _axes(mean) != [-1] or mean.attributes.get_int("keepdims", 1) != 1:
        raise _Left("its mean is not over the last axis")
    scaled = _applied(root, x)
    for user, index in scaled.outputs[0].uses():
        weight = user.inputs[1 - index] if user.op_type == "Mul" else None
        array = constant(weight)
        if weight is not None and array is not None and array.ndim == 1 and _alone(scaled.outputs[0]):
            return _Norm(x, weight, float(epsilon.reshape(())), user)
    raise _Left("it has no weight of one axis, or its result is read before the weight")


def _squared(value: ir.Value | None) -> ir.Value | None:
    node = producer(value, "Mul", "Pow")
    if node is None:
        return None
    first, second = node.inputs
    exponent = constant(second) if node.op_type == "Pow" else None
    squares = exponent is not None and exponent.size == 1 and float(exponent.reshape(())) == 2
    return first if squares or (node.op_type == "Mul" and first is second) else None


def _axes(mean: ir.Node) -> list[int] | None:
    if len(mean.inputs) > 1:
        array = constant(mean.inputs[1])
        return [int(axis) for axis in array.reshape(-1)] if array is not None else None
    return list(mean.attributes.get_ints("axes", []))


def _applied(root: ir.Node, x: ir.Value) -> ir.Node:
    """Returns the node that divides x by the root: Div(x, root), or Mul(x, 1 / root) in either order."""
    users = list(root.outputs[0].uses())
    user, index = users[0] if len(users) == 1 else (None, -1)
    if user is not None and user.op_type == "Div" and index == 1 and user.inputs[0] is x:
        return user
    one = constant(user.inputs[0]) if user is not None and user.op_type == "Div" and index == 1 else None
    inverts = user is not None and (
        user.op_type == "Reciprocal" or (one is not None and one.size == 1 and float(one.reshape(())) == 1)
    )
    if user is not None and inverts and _alone(user.outputs[0]):
        ((scaling, _),) = user.outputs[0].uses()
        if scaling.op_type == "Mul" and any(value is x for value in scaling.inputs):
            return scaling
    raise _Left("the root of its mean of squares is not what divides the same value")


def _alone(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _rewrite(norm: _Norm) -> None:
    (made,) = rewriting.insert(norm.last, "RmsNorm", [norm.x, norm.weight], {"epsilon": norm.epsilon}, domain=MARKERS)
    marker = made.producer()
    assert marker is not None
    rewriting.replace(norm.last.outputs[0], made)
    # What read the value to square and to scale it must not count as its readers any more.
    _drop(norm.last)
    put_in(marker)


def _drop(node: ir.Node) -> None:
    """Removes a node that nothing reads, and what is then read by nothing."""
    sources = [value.producer() for value in node.inputs if value is not None]
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    for source in sources:
        if (
            source is not None
            and source.graph is not None
            and not any(list(output.uses()) or output.is_graph_output() for output in source.outputs)
        ):
            _drop(source)


RULES = (Traced(),)
