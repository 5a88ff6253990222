"""Bidirectional attention becomes one CachedAttention with ``causal = 0``, over the keys and values of this run.

What PyTorch's scaled_dot_product_attention is traced to::

    softmax(scale * q @ transpose(k) [+ bias]) @ v, heads split by a reshape and a transpose before, merged after

A bias that only hides the padding that the input ``attention_mask`` tells becomes position_ids, which cost nothing;
whether it is one is tried out on small masks. Any other bias (relative positions, a causal mask of a decoder with a
growing cache) is handed on as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from rocline.custom_ops import DOMAIN, rewriting
from rocline.custom_ops.rewriting import Context, Outcome, Refusal, Rule, Stage, constant, producer

_LARGEST_HEAD = 256
_SPLIT = [0, 2, 1, 3]  # [batch, tokens, heads, head] <-> [batch, heads, tokens, head]
_POSITIONS = "rocline.key_position_ids"
# What a mask is tried out on: rows, tokens, and the size of any other axis; and the most nodes that may make it.
_ROWS, _TOKENS, _OTHER, _MOST_NODES = 3, 7, 5, 100
_LOWEST = -1e4
# What tells one token from another but by its mask, and the most numbers that a constant may hold to do so: a window
# that is wider than the tries would not show in them.
_COUNTING = frozenset(("Range", "CumSum", "Trilu", "EyeLike", "NonZero", "ScatterND", "GatherND"))
_FEW = 16
_Sizes = tuple[object, ...]
_Shape = npt.NDArray[np.int64]
_NO_SHAPE = np.zeros(0, np.int64)


class _Left(Exception):
    """This is an attention, but not one for the operator; the message is the reason."""


@dataclass(frozen=True)
class _Heads:
    """One of query, key and value: ``split`` is [batch, tokens, heads, head], or [batch, heads, tokens, head] as it is.

    Attributes:
        value: before heads and tokens change places, or, where ``whole``, with heads in front already.
        whole: see above.
        heads, head: sizes.
    """

    value: ir.Value
    whole: bool
    heads: int
    head: int


class Bidirectional(Rule):
    """Attention of encoders, cross-attention, and attention over a growing cache."""

    name = "bidirectional attention"
    made = "CachedAttention"
    stage = Stage.ATTENTION

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Rewrites the attentions around every Softmax, also in subgraphs. The shapes of values must be known."""
        matched, refused = 0, []
        for graph in (model.graph, *model.graph.subgraphs()):
            shown: dict[_Sizes, ir.Value] = {}
            for node in [node for node in graph if node.op_type == "Softmax"]:
                product, merged = _attention(node)
                if product is None or merged is None:
                    continue
                try:
                    _rewrite(model, node, product, merged, shown)
                    matched += 1
                except _Left as reason:
                    refused.append(Refusal(node.name or node.op_type, str(reason)))
            graph.sort()
        return Outcome(self.name, self.made, matched, tuple(refused))


def _attention(softmax: ir.Node) -> tuple[ir.Node | None, ir.Node | None]:
    """Returns the product of queries and keys, and the product with the values, of what looks like an attention."""
    scores = softmax.inputs[0]
    added = producer(scores, "Add")
    candidates = list(added.inputs) if added is not None else [scores]
    product = next((node for value in candidates if (node := producer(_unscaled(value)[0], "MatMul"))), None)
    users = [user for user, index in _guarded(softmax).uses() if user.op_type == "MatMul" and index == 0]
    return product, users[0] if users else None


def _guarded(softmax: ir.Node) -> ir.Value:
    """Returns the probabilities: behind the ``where(isnan(p), 0, p)`` that keeps rows without a key at zero."""
    output = softmax.outputs[0]
    for user, index in output.uses():
        condition = producer(user.inputs[0], "IsNaN") if user.op_type == "Where" and index == 2 else None
        zero = constant(user.inputs[1]) if condition is not None else None
        if condition is not None and condition.inputs[0] is output and zero is not None and not zero.any():
            return user.outputs[0]
    return output


def _rewrite(
    model: ir.Model, softmax: ir.Node, product: ir.Node, weighted: ir.Node, shown: dict[_Sizes, ir.Value]
) -> None:
    if softmax.attributes.get_int("axis", -1) not in (-1, 3):
        raise _Left("its softmax is not over the keys")
    probabilities = _guarded(softmax)
    inside = [product.outputs[0], softmax.inputs[0], softmax.outputs[0], probabilities]
    if any(value is None or value.is_graph_output() or _users(value) != 1 for value in inside):
        raise _Left("its scores or probabilities are used elsewhere too")
    bias, scale = _bias_and_scale(softmax, product)
    query, by_query = _unscaled(product.inputs[0])
    key, by_key = _unscaled(product.inputs[1])
    q = _heads(query, _SPLIT, "queries")
    k = _heads(key, [0, 2, 3, 1], "keys", whole=[0, 1, 3, 2])
    v = _heads(weighted.inputs[1], _SPLIT, "values", whole=None)
    if q.whole:
        raise _Left("its queries are not split into heads by a reshape")
    if (q.heads, q.head) != (k.heads, k.head) or (v.heads, v.head) != (k.heads, k.head):
        raise _Left(f"{q.heads} heads of {q.head} in its queries, {k.heads} of {k.head} in its keys, "
                    f"{v.heads} of {v.head} in its values")  # fmt: skip
    if q.head > _LARGEST_HEAD:
        raise _Left(f"its heads have {q.head} elements, expected at most {_LARGEST_HEAD}")
    transposed = _only_user(weighted.outputs[0], "Transpose")
    merged = _only_user(transposed.outputs[0], "Reshape") if transposed is not None else None
    if transposed is None or merged is None or list(transposed.attributes.get_ints("perm", [])) != _SPLIT:
        raise _Left("its heads are not merged by a transpose and a reshape")
    packed = producer(q.value, "Reshape")
    assert packed is not None
    queries, by_packed = _unscaled(packed.inputs[0])
    keys, values = _whole(merged, k), _whole(merged, v)
    mask = _hidden_by(model, bias) if bias is not None else None
    inputs = [queries, keys, values]
    if mask is not None:
        inputs.append(_positions(merged, mask))
    else:
        inputs += [_shown(merged, keys, shown), bias]
    scale *= by_query * by_key * by_packed
    attributes = {"heads": q.heads, "kv_heads": k.heads, "scale": scale, "causal": 0}
    (y,) = rewriting.insert(merged, "CachedAttention", inputs, attributes, domain=DOMAIN)
    rewriting.replace(merged.outputs[0], y)


def _bias_and_scale(softmax: ir.Node, product: ir.Node) -> tuple[ir.Value | None, float]:
    added = producer(softmax.inputs[0], "Add")
    if added is None:
        return None, _unscaled(softmax.inputs[0])[1]
    first, second = added.inputs
    bias, scores = (second, first) if producer(_unscaled(first)[0], "MatMul") is product else (first, second)
    if bias is None or bias.shape is None or len(bias.shape) != 4:
        raise _Left(f"the shape of its mask is {bias.shape if bias is not None else None}, expected four dimensions")
    if bias.shape[3] == 1:
        raise _Left("its mask is one number for all keys")
    return bias, _unscaled(scores)[1]


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """Follows multiplications and divisions by a number back; returns where they start, and their product."""
    scale = 1.0
    while (node := producer(value, "Mul", "Div")) is not None:
        operands = [constant(operand) for operand in node.inputs]
        place = next((index for index, array in enumerate(operands) if array is not None and array.size == 1), None)
        if place is None or (node.op_type == "Div" and place == 0):
            break
        number = float(operands[place].reshape(()))
        scale *= 1 / number if node.op_type == "Div" else number
        value = node.inputs[1 - place]
    return value, scale


def _heads(value: ir.Value | None, perm: list[int], what: str, *, whole: list[int] | None = _SPLIT) -> _Heads:
    """Describes an operand of a product, which is ``perm`` of a split value or ``whole`` of one with heads in front."""
    node = producer(value, "Transpose")
    given = list(node.attributes.get_ints("perm", [])) if node is not None else None
    source = node.inputs[0] if node is not None else None
    if source is not None and given == perm and (packed := producer(source, "Reshape")) is not None:
        width = _size(packed.inputs[0], -1)
        head, heads = _size(source, 3), _size(source, 2)
        heads = heads or (width // head if width and head else None)
        head = head or (width // heads if width and heads else None)
        rank = packed.inputs[0].shape.rank() if packed.inputs[0] is not None and packed.inputs[0].shape else None
        if heads and head and (width, rank) == (heads * head, 3):
            return _Heads(source, False, heads, head)
        raise _Left(f"the heads of its {what} have no known size")
    if whole is None or given == whole:
        kept = source if whole is not None else value
        heads, head = _size(kept, 1), _size(kept, 3)
        if kept is not None and heads and head:
            return _Heads(kept, True, heads, head)
        raise _Left(f"the heads of its {what} have no known size")
    raise _Left(f"its {what} are not split into heads by a reshape and a transpose")


def _size(value: ir.Value | None, axis: int) -> int | None:
    """Returns the size of a dimension; None where it is not known."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def _whole(before: ir.Node, part: _Heads) -> ir.Value:
    """Returns keys or values as [batch, heads, tokens, head], by a transpose that is there or a new one."""
    if part.whole:
        return part.value
    for user, _ in part.value.uses():
        if user.op_type == "Transpose" and list(user.attributes.get_ints("perm", [])) == _SPLIT:
            return user.outputs[0]
    (made,) = rewriting.insert(before, "Transpose", [part.value], {"perm": _SPLIT})
    made.type = part.value.type
    if part.value.shape is not None:
        batch, tokens, _, _ = part.value.shape
        made.shape = ir.Shape([batch, part.heads, tokens, part.head])
    return made


def _shown(before: ir.Node, keys: ir.Value, made: dict[_Sizes, ir.Value]) -> ir.Value:
    """Returns position_ids that show every key: zeros [batch, keys], shared by attentions over equally many."""
    sizes: _Sizes = (keys,)
    if keys.shape is not None and all(_named(keys.shape[axis]) for axis in (0, 2)):
        sizes = (str(keys.shape[0]), str(keys.shape[2]))
    if sizes not in made:
        graph = before.graph
        assert isinstance(graph, ir.Graph)
        axes = _integers(graph, "rocline.batch_and_keys", [0, 2])
        (shape,) = rewriting.insert(before, "Shape", [keys])
        (picked,) = rewriting.insert(before, "Gather", [shape, axes])
        (zeros,) = rewriting.insert(before, "ConstantOfShape", [picked], {"value": ir.tensor(np.zeros(1, np.int64))})
        zeros.dtype = ir.DataType.INT64
        made[sizes] = zeros
    return made[sizes]


def _named(size: object) -> bool:
    return isinstance(size, int) or (isinstance(size, ir.SymbolicDim) and size.value is not None)


def _positions(before: ir.Node, mask: ir.Value) -> ir.Value:
    """Returns the mask's position_ids, 0 for a token and -1 for padding, made once a graph."""
    for user, _ in mask.uses():
        if user.op_type == "Sub" and user.inputs[0] is mask and user.outputs[0].name == _POSITIONS:
            return user.outputs[0]
    assert isinstance(before.graph, ir.Graph)
    (made,) = rewriting.insert(before, "Sub", [mask, _integers(before.graph, "rocline.one", 1)])
    made.name, made.type, made.shape = _POSITIONS, mask.type, mask.shape
    return made


def _integers(graph: ir.Graph, name: str, numbers: int | list[int]) -> ir.Value:
    return graph.initializers.get(name) or rewriting.initializer(graph, name, np.array(numbers, np.int64))


def _hidden_by(model: ir.Model, bias: ir.Value) -> ir.Value | None:
    """Returns the input ``attention_mask`` where the bias hides the keys at which it is 0, and does nothing else.

    The nodes that make the bias are run on small masks, the other inputs being random: padding on either side, and
    holes. None where the answer is no, or cannot be had, or where they may know the places of tokens.
    """
    mask = next((value for value in model.graph.inputs if value.name == "attention_mask"), None)
    if mask is None or mask.dtype != ir.DataType.INT64 or bias.graph is not model.graph:
        return None
    if mask.shape is None or len(mask.shape) != 2:
        return None
    sizes = {str(mask.shape[0]): _ROWS, str(mask.shape[1]): _TOKENS}
    nodes, shapes = _ancestors(bias, lambda node: _known_shape(node, sizes))
    # Sizes are the same for every token, whatever they are sizes of.
    values, _ = _ancestors(bias, lambda node: _NO_SHAPE if node.op_type == "Shape" else None)
    if len(nodes) > _MOST_NODES or any(_counts(node) for node in values):
        return None
    try:
        evaluator = _evaluator(model, nodes, shapes, bias)
        rng = np.random.default_rng(0)
        for rows in (rng.integers(0, 2, (_ROWS, _TOKENS)), np.tri(_ROWS, _TOKENS), 1 - np.tri(_ROWS, _TOKENS)):
            feeds = {
                value.name: _random(rng, value, sizes)
                for value in model.graph.inputs
                if value.name is not None and value.name in evaluator.input_names
            }
            feeds |= {value.name: shape for value, shape in shapes.items() if value.name is not None}
            feeds["attention_mask"] = rows.astype(np.int64)
            # T5's bias takes the logarithm of distances that it does not use, 0 among them.
            with np.errstate(all="ignore"):
                (found,) = evaluator.run(None, feeds)
            shown = np.broadcast_to(rows[:, None, None] != 0, (_ROWS, 1, _TOKENS, _TOKENS))
            found = np.broadcast_to(found, shown.shape)
            if (found[shown] != 0).any() or (found[~shown] > _LOWEST).any():
                return None
    except Exception:  # the reference evaluator's own errors: what it cannot run stays a bias
        return None
    return mask


def _ancestors(
    value: ir.Value, known: Callable[[ir.Node], _Shape | None]
) -> tuple[list[ir.Node], dict[ir.Value, _Shape]]:
    """Returns the nodes that make a value, in order, and what is known of those that they start from, by their values.

    Args:
        value: of the graph.
        known: what a node gives, or None where its inputs have to be looked at.
    """
    found: set[ir.Node] = set()
    given: dict[ir.Value, _Shape] = {}
    pending = [value]
    while pending:
        made = pending.pop()
        node = made.producer()
        if node is None or node in found:
            continue
        shape = known(node)
        if shape is not None:
            given[made] = shape
        else:
            found.add(node)
            pending += [source for source in node.inputs if source is not None]
    assert value.graph is not None
    return [node for node in value.graph if node in found], given


def _known_shape(node: ir.Node, sizes: Mapping[str, int]) -> _Shape | None:
    """Returns what a Shape gives where symbols have these sizes; None for other nodes, and shapes not known."""
    source = node.inputs[0] if node.op_type == "Shape" and not node.domain else None
    if source is None or source.shape is None:
        return None
    known = [size if isinstance(size, int) else sizes.get(str(size), -1) for size in source.shape]
    picked = known[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(known))]
    return None if -1 in picked else np.array(picked, np.int64)


def _counts(node: ir.Node) -> bool:
    """Tells whether a node may tell tokens by their places."""
    arrays = [constant(value) for value in node.inputs]
    return node.op_type in _COUNTING or any(array is not None and array.size > _FEW for array in arrays)


def _evaluator(
    model: ir.Model, nodes: Sequence[ir.Node], shapes: Mapping[ir.Value, _Shape], result: ir.Value
) -> ReferenceEvaluator:
    proto = onnx.ModelProto(ir_version=10)
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    proto.graph.name = "mask"
    proto.graph.node.extend(ir.serde.serialize_node(node) for node in nodes)
    proto.graph.output.add().name = result.name
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    for value in read:
        if value.const_value is not None and value.producer() is None:
            proto.graph.initializer.append(ir.serde.serialize_tensor(value.const_value))
            proto.graph.initializer[-1].name = value.name
        elif value.is_graph_input() or value in shapes:
            proto.graph.input.append(ir.serde.serialize_value(value))
    return ReferenceEvaluator(proto)


def _random(rng: np.random.Generator, value: ir.Value, sizes: Mapping[str, int]) -> npt.NDArray[np.generic]:
    """Returns an input for a try: its symbols have these sizes."""
    assert value.shape is not None and value.dtype is not None
    shape = [size if isinstance(size, int) else sizes.get(str(size), _OTHER) for size in value.shape]
    return rng.integers(0, 2, shape).astype(value.dtype.numpy())


def _users(value: ir.Value) -> int:
    # The test for NaN reads the probabilities beside the choice that uses its answer.
    return sum(1 for user, _ in value.uses() if user.op_type != "IsNaN")


def _only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    # The shape that the heads are merged into may be computed from the value itself.
    users = [use for use in value.uses() if use[0].op_type != "Shape"]
    alone = len(users) == 1 and users[0][0].op_type == op_type and not value.is_graph_output()
    return users[0][0] if alone else None


RULES = (Bidirectional(),)
