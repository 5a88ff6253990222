"""Values that rules of several operators read and make: heads side by side or apart, and packed projections.

Letters in shapes: B batch, T tokens, H heads, D head.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rocline.custom_ops import rewriting
from rocline.custom_ops.rewriting import constant, insert, producer

_APART = (0, 2, 1, 3)


def same_shape(one: ir.Value, other: ir.Value) -> bool:
    """Tells whether two values are known to have the same shape, symbols included."""
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return False
    return all(same_size(a, b) for a, b in zip(one.shape, other.shape, strict=True))


def same_size(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    """Tells whether two dimensions are known to be equal."""
    if isinstance(one, int) or isinstance(other, int):
        return one == other
    return one.value is not None and one.value == other.value


def reshapes_to(shape: ir.Shape | None, sizes: Iterable[int | ir.SymbolicDim]) -> bool:
    """Tells whether what was reshaped to ``shape`` from as many elements as ``sizes`` have, has those sizes.

    One size may be unknown: where all others agree, it does too.
    """
    wanted = list(sizes)
    if shape is None or len(shape) != len(wanted):
        return False
    return sum(not same_size(a, b) for a, b in zip(shape, wanted, strict=True)) <= 1


def columns(value: ir.Value) -> int | None:
    """The size of a value's last axis, if it is a known number."""
    size = value.shape[-1] if value.shape else None
    return size if isinstance(size, int) else None


def transposed(value: ir.Value) -> ir.Value | None:
    """What a value [B, H, T, D] was transposed from, [B, T, H, D], or the other way round."""
    node = producer(value, "Transpose")
    return node.inputs[0] if node is not None and tuple(node.attributes.get_ints("perm", ())) == _APART else None


def side_by_side(value: ir.Value, heads: int, head: int, before: ir.Node) -> ir.Value:
    """Heads [B, T, H, D] as [B, T, H * D]: what they were reshaped from, or a new Reshape."""
    node = producer(value, "Reshape")
    source = node.inputs[0] if node is not None else None
    if source is not None and source.shape is not None and columns(source) == heads * head:
        lead = source.shape[:2] if len(source.shape) == 3 else ()
        if reshapes_to(value.shape, [*lead, heads, head]):
            return source
    return _reshaped(value, [0, 0, heads * head], before)


def apart(value: ir.Value, heads: int, head: int, before: ir.Node) -> ir.Value:
    """[B, T, H * D] as [B, T, H, D]."""
    return _reshaped(value, [0, 0, heads, head], before)


def _reshaped(value: ir.Value, sizes: list[int], before: ir.Node) -> ir.Value:
    assert before.graph is not None
    shape = rewriting.initializer(before.graph, f"{value.name}_shape", np.array(sizes, np.int64))
    (reshaped,) = insert(before, "Reshape", [value, shape])
    if value.shape is not None:
        reshaped.shape = ir.Shape([value.shape[i] if size == 0 else size for i, size in enumerate(sizes)])
    reshaped.type = value.type
    return reshaped


@dataclass(frozen=True)
class _Projection:
    """``x @ weight (+ bias)``: weight [n, columns], bias [columns], and the name to give what is made of them."""

    x: ir.Value
    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any] | None
    name: str


def pack(values: Sequence[ir.Value], user: ir.Node) -> ir.Value | str:
    """Returns one value that holds others side by side on the last axis, or why there is none.

    Either they are the pieces of such a value, or they are projections of one input, whose weights and biases are put
    together. A projection to heads that hold more than one of the values is taken apart for that.

    Args:
        values: what ``user`` reads, in order.
        user: the node before which a new projection is put.
    """
    whole = _whole(values)
    if whole is not None:
        return whole
    path: set[ir.Node] = {user}
    projections = [_projection(value, path) for value in values]
    found = [projection for projection in projections if projection is not None]
    if len(found) < len(values):
        return "what it reads are not all projections by a constant weight"
    if any(projection.x is not found[0].x for projection in found):
        return "its projections are of different inputs"
    # The node that the projection starts with is replaced: whatever else reads a value on the way would keep it alive.
    made = [output for node in path - {user} for output in node.outputs]
    weights = [node.inputs[1] for node in path if node.op_type == "MatMul"]
    read = [reader for value in (*made, *weights) if value is not None for reader, _ in value.uses()]
    if any(reader not in path for reader in read) or any(value.is_graph_output() for value in made):
        return "its projections are used elsewhere too"
    return _packed(found, user)


def _packed(projections: Sequence[_Projection], user: ir.Node) -> ir.Value:
    assert user.graph is not None
    first = projections[0]
    weights = np.concatenate([projection.weight for projection in projections], axis=1)
    weight = rewriting.initializer(user.graph, f"{first.name}_packed", weights)
    (packed,) = insert(user, "MatMul", [first.x, weight])
    if any(projection.bias is not None for projection in projections):
        biases = [
            np.zeros(projection.weight.shape[1], projection.weight.dtype)
            if projection.bias is None
            else projection.bias
            for projection in projections
        ]
        bias = rewriting.initializer(user.graph, f"{first.name}_packed_bias", np.concatenate(biases))
        (packed,) = insert(user, "Add", [packed, bias])
    if first.x.shape is not None:
        packed.shape = ir.Shape([*first.x.shape[:-1], weights.shape[1]])
    packed.type = first.x.type
    return packed


def _projection(value: ir.Value, path: set[ir.Node]) -> _Projection | None:
    """Reads a projection, or the part of one that heads were cut out of; adds the nodes on the way to ``path``."""
    cut = _cut_heads(value, path)
    if cut is not None:
        value, heads, start, stop = cut
    scaled = _scaled(value)
    if scaled is not None:
        path.add(scaled[0])
        _, value, factor = scaled
    bias = None
    add = producer(value, "Add")
    if add is not None:
        for summand, other in (add.inputs, tuple(add.inputs)[::-1]):
            if summand is not None and producer(summand, "MatMul") is not None and constant(other) is not None:
                path.add(add)
                value, bias = summand, constant(other)
    product = producer(value, "MatMul")
    if product is None:
        return None
    path.add(product)
    x, weight = product.inputs
    array = constant(weight)
    if x is None or weight is None or array is None or array.ndim != 2:
        return None
    if bias is not None and bias.shape != array.shape[1:]:
        return None
    if scaled is not None:
        array, bias = array * factor, None if bias is None else bias * factor
    if cut is not None:
        array = array.reshape(len(array), heads, -1)[:, :, start:stop].reshape(len(array), -1)
        bias = None if bias is None else bias.reshape(heads, -1)[:, start:stop].reshape(-1)
    return _Projection(x, array, bias, weight.name or "weight")


def _scaled(value: ir.Value) -> tuple[ir.Node, ir.Value, Any] | None:
    """For a value times one number, as OPT's queries are: the product, the value, and the number."""
    product = producer(value, "Mul")
    for source, factor in () if product is None else (product.inputs, tuple(product.inputs)[::-1]):
        number = constant(factor)
        if source is not None and number is not None and number.size == 1:
            assert product is not None
            return product, source, number.reshape(())
    return None


def _cut_heads(value: ir.Value, path: set[ir.Node]) -> tuple[ir.Value, int, int, int] | None:
    """For [B, T, H * D] that is cut out of wider heads: what they were, side by side, H, and from where to where."""
    joined = producer(value, "Reshape")
    piece = piece_of(joined.inputs[0]) if joined is not None and joined.inputs[0] is not None else None
    if joined is None or piece is None:
        return None
    wide, start, stop = piece
    apart_, cutter = producer(wide, "Reshape"), joined.inputs[0].producer()  # type: ignore[union-attr]
    width = columns(wide)
    if apart_ is None or apart_.inputs[0] is None or wide.shape is None or len(wide.shape) != 4 or width is None:
        return None
    heads = (columns(apart_.inputs[0]) or 0) // width
    if columns(value) != heads * (stop - start) or columns(apart_.inputs[0]) != heads * width:
        return None
    assert cutter is not None
    path.update((joined, cutter, apart_))
    return apart_.inputs[0], heads, start, stop


def _whole(values: Sequence[ir.Value]) -> ir.Value | None:
    """The value whose consecutive pieces on the last axis others are, without a rest."""
    pieces = [piece_of(value) for value in values]
    at = 0
    for piece in pieces:
        if piece is None or piece[0] is not pieces[0][0] or piece[1] != at:  # type: ignore[index]
            return None
        at = piece[2]
    assert pieces[0] is not None
    source = pieces[0][0]
    return source if columns(source) == at else None


def piece_of(value: ir.Value) -> tuple[ir.Value, int, int] | None:
    """What a value was cut from on the last axis, and from where to where; None for what is no such piece."""
    node = producer(value, "Split", "Slice")
    source = node.inputs[0] if node is not None else None
    if node is None or source is None or source.shape is None:
        return None
    rank, size = len(source.shape), columns(source)
    if node.op_type == "Split":
        sizes = [columns(output) for output in node.outputs]
        at = node.outputs.index(value)
        if node.attributes.get_int("axis", 0) not in (-1, rank - 1) or None in sizes:
            return None
        start = sum(part or 0 for part in sizes[:at])
        return source, start, start + (sizes[at] or 0)
    bounds = [constant(bound) for bound in node.inputs[1:]]
    if len(bounds) < 3 or size is None or any(bound is None or bound.size != 1 for bound in bounds):
        return None
    start, stop, axis = (int(bound.item()) for bound in bounds[:3])
    step = int(bounds[3].item()) if len(bounds) > 3 else 1
    if axis not in (-1, rank - 1) or step != 1:
        return None
    start, stop, _ = slice(start, stop).indices(size)
    return source, start, stop
