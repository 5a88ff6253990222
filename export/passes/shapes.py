"""Shapes of the values of a graph."""

from collections.abc import Iterable
from typing import Any

import onnx
import onnx_ir as ir

from rocline.custom_ops import rewriting
from rocline.custom_ops.rewriting import Context, Outcome, Rule, constant, producer

# Larger initializers are weights, whose values no shape depends on.
SHAPE_ELEMENTS = 128
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
            if tensor is not None and tensor.size <= SHAPE_ELEMENTS:
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
        elif (gather := _counted(node)) is not None:
            proto.node.extend(_counted_stand_in(gather, node.outputs[0]))
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


def _counted(node: ir.Node) -> ir.Node | None:
    """Returns the Gather that takes the limit of ``range(0, size, 1)`` out of a shape; None for other nodes."""
    if node.op_type != "Range" or node.domain:
        return None
    start, step = (constant(node.inputs[index]) for index in (0, 2))
    counts = start is not None and step is not None and start.item() == 0 and step.item() == 1
    return _gathered(node.inputs[1]) if counts and node.outputs[0].dtype is not None else None


def _counted_stand_in(gather: ir.Node, made: ir.Value) -> list[onnx.NodeProto]:
    """Returns nodes that inference sees through: of a range's length it knows nothing, of a filled shape it does."""
    shape, index = gather.inputs
    assert shape is not None and shape.name and made.name and made.dtype is not None
    at, size = f"{made.name}_at", f"{made.name}_size"
    place = onnx.helper.make_tensor("place", onnx.TensorProto.INT64, [1], [int(constant(index).item())])
    number = onnx.helper.make_tensor("number", made.dtype, [1], [0])
    return [
        onnx.helper.make_node("Constant", [], [at], value=place),
        onnx.helper.make_node("Gather", [shape.name, at], [size]),
        onnx.helper.make_node("ConstantOfShape", [size], [made.name], value=number),
    ]


def _gathered(value: ir.Value | None) -> ir.Node | None:
    """Returns the Gather that took the one number that a value holds out of a shape."""
    while (moved := producer(value, "Unsqueeze", "Squeeze", "Cast")) is not None:
        value = moved.inputs[0]
    gather = producer(value, "Gather")
    index = constant(gather.inputs[1]) if gather is not None else None
    from_shape = gather is not None and producer(gather.inputs[0], "Shape") is not None
    return gather if from_shape and index is not None and index.size == 1 else None


def size_held(value: ir.Value | None) -> int | ir.SymbolicDim | None:
    """Returns the size of an axis that a value of one number holds; None where it is not known to hold one."""
    gather = _gathered(value)
    sizes = sizes_read(gather.inputs[0]) if gather is not None else None
    return sizes[int(constant(gather.inputs[1]).item())] if gather is not None and sizes is not None else None


def sizes_read(value: ir.Value | None) -> list[int | ir.SymbolicDim] | None:
    """Returns the sizes that a Shape gives as ``value``; None for what another node gives, or where none is known."""
    shape = producer(value, "Shape")
    source = shape.inputs[0] if shape is not None else None
    if shape is None or source is None or source.shape is None:
        return None
    sizes = list(source.shape)
    return sizes[shape.attributes.get_int("start", 0) : shape.attributes.get_int("end", len(sizes))]
