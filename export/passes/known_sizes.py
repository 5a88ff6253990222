"""The sizes that the tracer computes though they are known, and what keeps others from being known."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from rocline.custom_ops import rewriting
from rocline.custom_ops.rewriting import Context, Outcome, Rule, constant, producer
from rocline.export.passes import shapes

# What is known after one round makes more known in the next.
_ROUNDS = 3


class KnownSizes(Rule):
    """Sizes that do not depend on the input become constants, and so does what is computed from constants alone."""

    name = "known sizes"
    made = "removed: known when exported"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Infers the shapes of all values on the way; later passes read them."""
        before = sum(1 for _ in model.graph.all_nodes())
        for _ in range(_ROUNDS):
            shapes.infer(model)
            for graph in (model.graph, *model.graph.subgraphs()):
                _fold_sizes(graph)
                _fold_targets(graph)
                _unguard(graph)
            optimizer.fold_constants(model, onnx_shape_inference=False)
            common.RemoveUnusedNodesPass()(model)
        shapes.infer(model)
        folded = before - sum(1 for _ in model.graph.all_nodes())
        return Outcome(self.name, self.made, max(0, folded))


def _fold_sizes(graph: ir.Graph) -> None:
    """Replaces what picks known sizes out of a shape, or fills a small one, by constants."""
    for node in list(graph):
        sizes = _picked(node)
        if sizes is None:
            sizes = _filled(node)
        output = node.outputs[0]
        if sizes is None or output.is_graph_output():
            continue
        output.replace_all_uses_with(rewriting.initializer(graph, f"{output.name}_known", sizes))


def _filled(node: ir.Node) -> npt.NDArray[Any] | None:
    """Returns what a ConstantOfShape makes of a known small shape, which folding constants leaves alone."""
    shape = constant(node.inputs[0]) if node.op_type == "ConstantOfShape" else None
    if node.domain or shape is None or shape.prod() > shapes.SHAPE_ELEMENTS:
        return None
    value = node.attributes.get("value")
    return np.full(shape, value.as_tensor().numpy().reshape(()) if value is not None else np.float32(0))


def _fold_targets(graph: ir.Graph) -> None:
    """Gives a Reshape a constant for its shape where that is known but for one size: 0 copies, -1 is what is left."""
    for node in list(graph):
        source, target = (*node.inputs, None, None)[:2]
        result = node.outputs[0].shape
        if node.op_type != "Reshape" or node.domain or constant(target) is not None or result is None:
            continue
        if source is None or source.shape is None or node.attributes.get_int("allowzero", 0) == 1:
            continue
        sizes = [_target(size, source.shape, axis) for axis, size in enumerate(result)]
        if sizes.count(-1) <= 1:
            known = rewriting.initializer(graph, f"{node.outputs[0].name}_shape", np.array(sizes, np.int64))
            node.replace_input_with(1, known)


def _target(size: int | ir.SymbolicDim, source: ir.Shape, axis: int) -> int:
    if isinstance(size, int):
        return size
    return 0 if size.value is not None and axis < len(source) and source[axis] == size else -1


def _picked(node: ir.Node) -> npt.NDArray[np.int64] | None:
    """Returns what a Gather or Slice takes out of a Shape; None where it is another node or the sizes are not known."""
    read = shapes.sizes_read(node.inputs[0]) if node.op_type in ("Gather", "Slice") else None
    arguments = [constant(value) for value in node.inputs[1:]]
    if node.domain or read is None or any(argument is None for argument in arguments):
        return None
    sizes = np.array([size if isinstance(size, int) else -1 for size in read], np.int64)
    if node.op_type == "Gather":
        picked = sizes[arguments[0]]
    else:
        first, last = (int(argument[0]) for argument in arguments[:2])
        step = int(arguments[3][0]) if len(arguments) > 3 else 1
        picked = sizes[first:last:step]
    return np.asarray(picked) if (picked >= 0).all() else None


def _unguard(graph: ir.Graph) -> None:
    """Takes off ``where(shape == -1, 1, shape)``, as PyTorch expands values, where it is known which sizes are -1.

    Shape inference does not see through it, and knows no shape behind it then.
    """
    for node in list(graph):
        parts = _guarded(node)
        if parts is not None and not node.outputs[0].is_graph_output():
            one = rewriting.initializer(graph, f"{node.outputs[0].name}_one", np.ones(1, np.int64))
            (shape,) = rewriting.insert(node, "Concat", [part or one for part in parts], {"axis": 0})
            rewriting.replace(node.outputs[0], shape)


def _guarded(node: ir.Node) -> list[ir.Value | None] | None:
    """Returns the parts of the shape that is guarded, None in the place of -1; None for another node."""
    condition = producer(node.inputs[0], "Equal") if node.op_type == "Where" and not node.domain else None
    joined = producer(_flat(node.inputs[2]), "Concat") if condition is not None else None
    if condition is None or joined is None or node.inputs[2] not in condition.inputs:
        return None
    others = [constant(value) for value in condition.inputs if value is not node.inputs[2]]
    ones = constant(node.inputs[1])
    if len(others) != 1 or others[0] is None or (others[0] != -1).any() or not _is_ones(ones):
        return None
    parts: list[ir.Value | None] = []
    for part in joined.inputs:
        known = constant(part)
        if known is not None and known.size != 1 and (known == -1).any():
            return None
        if known is None and shapes.size_held(part) is None:
            return None
        parts.append(None if known is not None and (known == -1).any() else part)
    return parts


def _is_ones(array: npt.NDArray[Any] | None) -> bool:
    return array is not None and array.dtype == np.int64 and bool((array == 1).all())


def _flat(value: ir.Value | None) -> ir.Value | None:
    """Returns the value of one axis that a value of one axis was reshaped from, as PyTorch does before it compares."""
    reshape = producer(value, "Reshape")
    source = reshape.inputs[0] if reshape is not None else None
    return source if source is not None and source.shape is not None and len(source.shape) == 1 else value
