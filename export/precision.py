"""Which nodes of a graph must stay in fp32 when the rest becomes fp16 or bf16, for a half type would lose the answer.

Three kinds, each found by structure and not by name:

- *Integer-derived values*: positions, angles, masks and bucket numbers are computed from integers. fp16 counts exactly
  to 2048 and bf16 to 256, so a rotary embedding or a relative position would be wrong beyond that.
- *Squares and their sums*: the mean of squares in a norm overflows fp16 where an activation passes 256, and a centred
  activation loses its low bits. From the square, or from the mean that is subtracted, to where the norm is applied.
- *Vanishing constants*: an epsilon that rounds to 0 guards nothing.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rocline.export import element_types

_LEARNED = frozenset({"Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
_MOVES = frozenset({"Concat", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"})
_SUMS = frozenset({"ReduceMean", "ReduceSum"})
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


def keep_in_fp32(graph: ir.Graph, smallest: float) -> set[ir.Node]:
    """Returns the nodes of a graph and its subgraphs that stay in fp32. Element types must be known.

    Args:
        graph: of an fp32 model.
        smallest: the smallest positive value of the half type.
    """
    nodes = list(graph.all_nodes())
    kept = integer_derived(nodes)
    for node in nodes:
        if node.op_type in _SUMS and (squared := _square_of(node.inputs[0])) is not None:
            square = node.inputs[0].producer()  # type: ignore[union-attr]
            assert square is not None
            kept |= {square, node} | _until_applied(node, squared)
        elif node.op_type == "ReduceL2":
            kept |= {node} | _until_applied(node, node.inputs[0])
        elif node.op_type == "ReduceMean":
            kept |= _centring(node)
        elif any(0 < abs(value) < smallest for value in _scalars(node)):
            kept |= {node} | _until_applied(node, None)
    return kept


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Returns the tensor of an initializer or of a Constant node's output; None for anything else."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value
    producer = value.producer()
    if producer is None or producer.op_type != "Constant" or "value" not in producer.attributes:
        return None
    return producer.attributes["value"].as_tensor()


def is_float(value: ir.Value | None) -> bool:
    """Tells whether a value is a float32 tensor."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def integer_derived(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """Returns the nodes that compute floats from integers and constants alone: positions, angles, masks, buckets."""
    derived: set[ir.Value] = set()
    moved: dict[ir.Value, ir.Node] = {}
    kept: set[ir.Node] = set()
    for node in nodes:
        floats = [value for value in node.inputs if value and is_float(value) and constant(value) is None]
        if all(value in moved for value in floats) and _moves_a_constant(node):
            moved[node.outputs[0]] = node
        elif _starts_from_integers(node) or _continues(node, derived, moved):
            kept.add(node)
            derived.update(node.outputs)
            pending: list[ir.Value | None] = list(floats)
            while pending:
                value = pending.pop()
                if value is not None and value in moved:
                    kept.add(moved[value])
                    pending.extend(moved[value].inputs)
    return kept


def _moves_a_constant(node: ir.Node) -> bool:
    return node.op_type in _MOVES and is_float(node.outputs[0])


def _starts_from_integers(node: ir.Node) -> bool:
    if not is_float(node.outputs[0]):
        return False
    source = node.inputs[0].dtype if node.op_type == "Cast" and node.inputs[0] is not None else None
    return node.op_type == "Range" or (source is not None and source not in _FLOATS)


def _continues(node: ir.Node, derived: set[ir.Value], moved: Mapping[ir.Value, ir.Node]) -> bool:
    """Tells whether a node computes floats from derived values and constants alone, none of them a weight matrix."""
    if element_types.subgraphs(node) or _applies_weights(node):
        return False
    floats = [value for value in node.inputs if is_float(value) and constant(value) is None]
    return any(value in derived for value in floats) and all(value in derived or value in moved for value in floats)


def _applies_weights(node: ir.Node) -> bool:
    if node.op_type not in _LEARNED:
        return False
    tensors = (constant(value) for value in node.inputs)
    return any(tensor is not None and sum(size != 1 for size in tensor.shape.numpy()) > 1 for tensor in tensors)


def _square_of(value: ir.Value | None) -> ir.Value | None:
    """Returns x where the value is x * x or x ** 2."""
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    if node.op_type == "Pow" and any(float(exponent) == 2 for exponent in _scalars(node)):
        return node.inputs[0]
    return None


def _centring(mean: ir.Node) -> set[ir.Node]:
    """Returns a mean and the subtraction of it from what it is the mean of."""
    subtractions = {
        user for user, _ in mean.outputs[0].uses() if user.op_type == "Sub" and user.inputs[0] is mean.inputs[0]
    }
    return {mean} | subtractions if subtractions else set()


def _until_applied(start: ir.Node, applied_to: ir.Value | None) -> set[ir.Node]:
    """Returns the nodes after a statistic, up to those that apply it: to ``applied_to``, or as a divisor."""
    kept: set[ir.Node] = set()
    island = set(start.outputs)
    pending = [start]
    while pending:
        for user in _users(pending.pop()):
            floats = [value for value in user.inputs if is_float(value) and constant(value) is None]
            divides = user.op_type == "Div" and user.inputs[1] in island
            inside = all(value in island or value is applied_to for value in floats)
            if user in kept or element_types.subgraphs(user) or _applies_weights(user) or not (inside or divides):
                continue
            kept.add(user)
            if not divides and applied_to not in floats:
                island.update(user.outputs)
                pending.append(user)
    return kept


def _users(node: ir.Node) -> Iterator[ir.Node]:
    for output in node.outputs:
        for user, _ in output.uses():
            yield user


def _scalars(node: ir.Node) -> Iterator[npt.NDArray[np.generic]]:
    for value in node.inputs:
        tensor = constant(value)
        if tensor is not None and tensor.size == 1 and tensor.dtype in _FLOATS:
            yield tensor.numpy().reshape(())
