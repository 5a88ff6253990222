"""Shapes of the values of a graph, and the sizes that the tracer computes though they are known."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnxscript import optimizer

from rocline.custom_ops import rewriting
from rocline.custom_ops.rewriting import Context, Outcome, Rule

# Larger initializers are weights, whose values no shape depends on.
_SHAPE_ELEMENTS = 128
# What is known after the first round makes more known in the second.
_ROUNDS = 2
# Operators that ONNX's inference does not know, with outputs shaped like an input: output index -> input index.
_SHAPED_LIKE = {
    "rocline::CachedAttention": {0: 0},
    "rocline::SkipRmsNorm": {0: 0, 1: 0},
    "rocline.marker::Activation": {0: 0},
    "rocline.marker::Attention": {},  # its heads change places: see `_fill`
    "rocline.marker::CacheAppend": {0: 0},
    "rocline.marker::RmsNorm": {0: 0},
    "rocline.marker::Rotary": {0: 0},
    "com.microsoft::BiasGelu": {0: 0},
    "com.microsoft::FastGelu": {0: 0},
    "com.microsoft::Gelu": {0: 0},
    "com.microsoft::QuickGelu": {0: 0},
    "com.microsoft::SkipLayerNormalization": {0: 0, 3: 0},
}


class KnownSizes(Rule):
    """Sizes that do not depend on the input become constants, and so does what is computed from constants alone."""

    name = "known sizes"
    made = "removed: known when exported"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Infers the shapes of all values on the way; later passes read them."""
        before = sum(1 for _ in model.graph.all_nodes())
        for _ in range(_ROUNDS):
            infer(model)
            for graph in (model.graph, *model.graph.subgraphs()):
                _fold_sizes(graph)
                _fold_targets(graph)
            optimizer.fold_constants(model, onnx_shape_inference=False)
        infer(model)
        folded = before - sum(1 for _ in model.graph.all_nodes())
        return Outcome(self.name, self.made, max(0, folded))


class InferShapes(Rule):
    """What became of a graph gets its shapes anew, for the rules that need them."""

    name = "shapes"
    made = "nothing"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Infers the shapes of all values."""
        infer(model)
        return Outcome(self.name, self.made, 0)


def infer(model: ir.Model) -> None:
    """Sets the shape and dtype of every value that ONNX's shape inference tells.

    A symbol means the same size wherever it occurs in one graph, and nothing in another one: each subgraph is inferred
    by itself, since ONNX's inference confuses values of the same name in two branches.
    """
    for graph in (model.graph, *model.graph.subgraphs()):
        nodes = list(graph)
        for node in nodes:
            for output in node.outputs:
                if not output.is_graph_output():
                    output.shape = _kept(node, output.shape)
        proto = onnx.ModelProto(ir_version=10)
        for domain, version in model.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        proto.graph.name = "graph"
        _fill(proto.graph, graph, nodes)
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
        values = {output.name: output for node in nodes for output in node.outputs}
        for info in inferred.value_info:
            _set(values.get(info.name), info)


def _fill(proto: onnx.GraphProto, graph: ir.Graph, nodes: Iterable[ir.Node]) -> None:
    """Writes the nodes, what they read from outside, and small constants: no weights, no subgraphs."""
    made: set[ir.Value] = {output for node in nodes for output in node.outputs}
    for node in nodes:
        for value in node.inputs:
            if value is None or value in made:
                continue
            made.add(value)
            tensor = value.const_value
            if tensor is not None and tensor.size <= _SHAPE_ELEMENTS:
                proto.initializer.append(ir.serde.serialize_tensor(tensor))
                proto.initializer[-1].name = value.name
            elif value.dtype is not None and value.shape is not None:
                proto.input.append(ir.serde.serialize_value(value))
        if (node.domain, node.op_type) == (rewriting.MARKERS, "Attention"):
            # Heads [batch, heads, tokens, head] come out as [batch, tokens, heads, head].
            heads, merged = node.inputs[0], node.outputs[0]
            proto.node.append(_stand_in("Transpose", heads, merged, perm=(0, 2, 1, 3)))
        elif node.domain:
            proto.input.extend(ir.serde.serialize_value(output) for output in node.outputs if _is_kept(node, output))
            for output, source in _SHAPED_LIKE.get(f"{node.domain}::{node.op_type}", {}).items():
                if output < len(node.outputs):
                    proto.node.append(_stand_in("Identity", node.inputs[source], node.outputs[output]))
        elif not any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            proto.node.append(ir.serde.serialize_node(node))


def _stand_in(op_type: str, source: ir.Value | None, made: ir.Value, **attributes: Any) -> onnx.NodeProto:
    """Returns a node that inference knows, in the place of one that it does not."""
    assert source is not None and source.name is not None and made.name is not None
    return onnx.helper.make_node(op_type, [source.name], [made.name], **attributes)


def _kept(node: ir.Node, shape: ir.Shape | None) -> ir.Shape | None:
    """Returns the shape that a rule gave to an operator that nobody else can infer, less the symbols of inference."""
    if shape is None or not node.domain or f"{node.domain}::{node.op_type}" in _SHAPED_LIKE:
        return None
    return ir.Shape([size if isinstance(size, int) or _lasts(size) else None for size in shape])


def _lasts(size: ir.SymbolicDim) -> bool:
    # Inference numbers its own symbols anew each time.
    return size.value is not None and not size.value.startswith("unk__")


def _is_kept(node: ir.Node, output: ir.Value) -> bool:
    return _kept(node, output.shape) is not None and output.dtype is not None and not output.is_graph_output()


def _set(value: ir.Value | None, info: onnx.ValueInfoProto) -> None:
    if value is None:
        return
    kind = info.type.tensor_type
    if value.dtype is None and kind.elem_type:
        value.dtype = ir.DataType(kind.elem_type)
    if value.shape is None and kind.HasField("shape"):
        value.shape = ir.Shape(
            [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in kind.shape.dim]
        )


def _fold_sizes(graph: ir.Graph) -> None:
    """Replaces what picks known sizes out of a shape, or fills a small one, by constants."""
    for node in list(graph):
        sizes = _picked(node)
        if sizes is None:
            sizes = _filled(node)
        output = node.outputs[0]
        if sizes is None or output.is_graph_output():
            continue
        constant = rewriting.initializer(graph, f"{output.name}_known", sizes)
        output.replace_all_uses_with(constant)


def _filled(node: ir.Node) -> npt.NDArray[Any] | None:
    """Returns what a ConstantOfShape makes of a known small shape, which folding constants leaves alone."""
    shape = rewriting.constant(node.inputs[0]) if node.op_type == "ConstantOfShape" else None
    if node.domain or shape is None or shape.prod() > _SHAPE_ELEMENTS:
        return None
    value = node.attributes.get("value")
    return np.full(shape, value.as_tensor().numpy().reshape(()) if value is not None else np.float32(0))


def _fold_targets(graph: ir.Graph) -> None:
    """Gives a Reshape a constant for its shape where that is known but for one size: 0 copies, -1 is what is left."""
    for node in list(graph):
        source, target = (*node.inputs, None, None)[:2]
        result = node.outputs[0].shape
        if node.op_type != "Reshape" or node.domain or rewriting.constant(target) is not None or result is None:
            continue
        if source is None or source.shape is None or node.attributes.get_int("allowzero", 0) == 1:
            continue
        sizes = [_target(size, source.shape, axis) for axis, size in enumerate(result)]
        if sizes.count(-1) <= 1:
            constant = rewriting.initializer(graph, f"{node.outputs[0].name}_shape", np.array(sizes, np.int64))
            node.replace_input_with(1, constant)


def _target(size: int | ir.SymbolicDim, source: ir.Shape, axis: int) -> int:
    if isinstance(size, int):
        return size
    return 0 if size.value is not None and axis < len(source) and source[axis] == size else -1


def _picked(node: ir.Node) -> npt.NDArray[np.int64] | None:
    """Returns what a Gather or Slice takes out of a Shape; None where it is another node or the sizes are not known."""
    shape = rewriting.producer(node.inputs[0], "Shape") if node.op_type in ("Gather", "Slice") else None
    source = shape.inputs[0] if shape is not None else None
    arguments = [rewriting.constant(value) for value in node.inputs[1:]]
    if node.domain or source is None or source.shape is None or any(argument is None for argument in arguments):
        return None
    assert shape is not None
    sizes = np.array([size if isinstance(size, int) else -1 for size in source.shape], np.int64)
    sizes = sizes[shape.attributes.get_int("start", 0) : shape.attributes.get_int("end", len(sizes))]
    if node.op_type == "Gather":
        picked = sizes[arguments[0]]
    else:
        first, last = (int(argument[0]) for argument in arguments[:2])
        step = int(arguments[3][0]) if len(arguments) > 3 else 1
        picked = sizes[first:last:step]
    return np.asarray(picked) if (picked >= 0).all() else None
