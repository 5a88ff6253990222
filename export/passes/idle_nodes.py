"""Constants as initializers, and nodes that do nothing out of the way: what rules match must stand side by side."""

import onnx_ir as ir
from onnx_ir.passes import common

from rocline.custom_ops.rewriting import Context, Outcome, Rule, constant, replace
from rocline.custom_ops.rule_values import reshapes_to, same_size
from rocline.export.passes import shapes


class IdleNodes(Rule):
    """Removes Identity, and Casts to the type that a value has; Constant nodes become initializers."""

    name = "idle nodes"
    made = "removed"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Counts what it removed; Constants are not counted, since they are the same in another place."""
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        removed = 0
        for node in list(model.graph.all_nodes()):
            output, source = node.outputs[0], node.inputs[0] if node.inputs else None
            if node.domain or source is None or output.is_graph_output():
                continue
            if node.op_type == "Identity" or (node.op_type == "Cast" and _same_type(node, source)):
                replace(output, source)
                removed += 1
        return Outcome(self.name, self.made, removed)


class IdleReshapes(Rule):
    """Removes what reshapes a value to the shape that it has, or cuts nothing off it, once the shapes are known."""

    name = "idle reshapes"
    made = "removed"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Counts what it removed; shapes are inferred again, since those behind it are better known now."""
        removed = 0
        for node in list(model.graph.all_nodes()):
            idle = _IDLE.get(node.op_type) if not node.domain else None
            if idle is not None and idle(node):
                assert node.inputs[0] is not None
                replace(node.outputs[0], node.inputs[0])
                removed += 1
        if removed:
            shapes.infer(model)
        return Outcome(self.name, self.made, removed)


def _same_shape(reshape: ir.Node) -> bool:
    before, after = reshape.inputs[0], reshape.outputs[0]
    if before is None or before.shape is None or after.shape is None or after.is_graph_output():
        return False
    return reshapes_to(after.shape, before.shape)


def _cuts_nothing(slice_: ir.Node) -> bool:
    """Tells whether one axis is sliced from its start to its size, as masks are to the number of keys."""
    if len(slice_.inputs) < 4 or slice_.outputs[0].is_graph_output():
        return False
    source, start, stop, *rest = slice_.inputs
    first, axis, step = (constant(value) for value in (start, *rest, None)[:3])
    whole = all(value is not None and value.size == 1 for value in (first, axis)) and first.item() == 0
    if not whole or (len(rest) > 1 and (step is None or step.item() != 1)) or source is None or source.shape is None:
        return False
    size = shapes.size_held(stop)
    return size is not None and same_size(size, source.shape[int(axis.item())])


_IDLE = {"Reshape": _same_shape, "Slice": _cuts_nothing}


def _same_type(cast: ir.Node, source: ir.Value) -> bool:
    return source.dtype is not None and source.dtype == cast.attributes["to"].as_int()
