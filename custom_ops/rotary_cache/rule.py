"""Puts RotaryCache where marked keys and values go into the cache, and packs the projections that it reads."""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from rocline.custom_ops import DOMAIN, rewriting
from rocline.custom_ops.rewriting import MARKERS, Context, Outcome, Refusal, Rule, Stage, constant, insert, producer
from rocline.custom_ops.rule_values import apart, columns, pack, piece_of, side_by_side, transposed


class _Unfit(Exception):
    """The marked attention reads something that the operator cannot do; the message is the reason."""


@dataclass(frozen=True)
class _Rotation:
    """The angles of a Rotary marker, and which elements it pairs."""

    table: ir.Node
    interleaved: bool


@dataclass(frozen=True)
class _Side:
    """What is behind the q, k or v of an attention: heads [B, T, H, D], before their norm and rotation."""

    heads: ir.Value
    norm: ir.Node | None
    rotation: _Rotation | None


@dataclass
class _Constants:
    """The initializers that the nodes of one graph share."""

    graph: ir.Graph
    tables: dict[tuple[ir.Value, ir.Value, bool], tuple[ir.Value, ir.Value]] = field(default_factory=dict)
    empty: ir.Value | None = None

    def none(self) -> ir.Value:
        """An input with no elements."""
        if self.empty is None:
            self.empty = rewriting.initializer(self.graph, "none", np.zeros(0, np.float32))
        return self.empty

    def angles(self, rotation: _Rotation | None) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines [P, R / 2], one of each pair that the marker's tables hold twice."""
        if rotation is None:
            return self.none(), self.none()
        _, cos, sin = rotation.table.inputs
        assert cos is not None and sin is not None
        key = (cos, sin, rotation.interleaved)
        if key not in self.tables:
            number = f"_{len(self.tables)}" if self.tables else ""
            names = (f"rotary_cos{number}", f"rotary_sin{number}")
            halves = [_half(table, rotation.interleaved) for table in (cos, sin)]
            made = [rewriting.initializer(self.graph, *named) for named in zip(names, halves, strict=True)]
            self.tables[key] = (made[0], made[1])
        return self.tables[key]


class PutIn(Rule):
    """An attention whose keys and values are appended to a cache -> RotaryCache, and the attention over its outputs.

    The norms of single heads before the rotation become the operator's own.
    """

    name = "rotary cache"
    made = "RotaryCache"
    stage = Stage.CACHE

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Rewrites every marked attention of the main graph."""
        constants, matched, refused = _Constants(model.graph), 0, []
        for node in list(model.graph):
            if (node.domain, node.op_type) == (MARKERS, "Attention"):
                try:
                    _put_in(node, constants)
                    matched += 1
                except _Unfit as reason:
                    refused.append(Refusal(node.name or "", str(reason)))
        return Outcome(self.name, self.made, matched, tuple(refused))


class Packed(Rule):
    """RotaryCache of three projections, or of three pieces of one -> RotaryCache of one projection."""

    name = "packed q, k, v"
    made = "RotaryCache"
    stage = Stage.CACHE

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Rewrites every RotaryCache of the main graph that is not packed."""
        constants, matched, refused = _Constants(model.graph), 0, []
        for node in list(model.graph):
            values = [value for value in node.inputs[:3] if value is not None]
            if (node.domain, node.op_type) != (DOMAIN, "RotaryCache") or columns(values[1]) == 0:
                continue
            packed = pack(values, node)
            if isinstance(packed, str):
                refused.append(Refusal(node.name or "", packed))
                continue
            for index, value in enumerate((packed, constants.none(), constants.none())):
                node.replace_input_with(index, value)
            matched += 1
        return Outcome(self.name, self.made, matched, tuple(refused))


def _put_in(node: ir.Node, constants: _Constants) -> None:
    q, keys, values, position_ids = node.inputs
    heads, kv_heads, head = (node.attributes[name].as_int() for name in ("heads", "kv_heads", "head_dim"))
    appends = [_append(cache) for cache in (keys, values)]
    if any(append.inputs[2] is not position_ids for append in appends):
        raise _Unfit("its queries and its cache have different positions")
    sides = [_behind(value, head, node) for value in (q, appends[0].inputs[1], appends[1].inputs[1])]
    rotation = _common_rotation(sides, position_ids)
    norms, epsilon = _common_norms(sides)
    cos, sin = constants.angles(rotation)
    packed = [
        side_by_side(side.heads, count, head, node)
        for side, count in zip(sides, (heads, kv_heads, kv_heads), strict=True)
    ]
    past = [append.inputs[0] for append in appends]
    weights = [None if norm is None else norm.inputs[1] for norm in norms]
    if weights[0] is None and weights[1] is not None:
        weights[0] = constants.none()
    width = 0 if rotation is None else 2 * (columns(cos) or 0)
    rotated, *presents = insert(
        node,
        "RotaryCache",
        [*packed, *past, position_ids, cos, sin, *weights],
        {
            "heads": heads,
            "kv_heads": kv_heads,
            "interleaved": int(rotation is not None and rotation.interleaved),
            "rotary_dim": 0 if width == head else width,
            "epsilon": epsilon,
        },
        outputs=3,
        domain=DOMAIN,
    )
    lead = packed[0].shape[:2] if packed[0].shape is not None else (None, None)
    rotated.shape, rotated.type = ir.Shape([*lead, heads * head]), packed[0].type
    for append, present in zip(appends, presents, strict=True):
        assert append.inputs[0] is not None
        present.shape, present.type = append.inputs[0].shape, append.inputs[0].type
        rewriting.replace(append.outputs[0], present)
    (back,) = insert(node, "Transpose", [apart(rotated, heads, head, node)], {"perm": (0, 2, 1, 3)})
    node.replace_input_with(0, back)


def _append(cache: ir.Value | None) -> ir.Node:
    append = producer(cache, "CacheAppend", domain=MARKERS)
    if append is None:
        raise _Unfit("its keys and values do not come from the cache")
    return append


def _behind(value: ir.Value | None, head: int, before: ir.Node) -> _Side:
    """Follows heads [B, H, T, D] back through their rotation, transposition and norm."""
    assert value is not None
    rotation, value = _unrotated(value)
    norm, value = _unnormed(value, head)
    heads = transposed(value) or _cut(value, before)
    if heads is None:
        raise _Unfit("its heads are not transposed from [batch, tokens, heads, head]")
    if norm is None:
        norm, heads = _unnormed(heads, head)
    return _Side(heads, norm, rotation)


def _cut(value: ir.Value, before: ir.Node) -> ir.Value | None:
    """Cuts heads out before they are transposed, where the model does it after, as GPT-NeoX does."""
    piece = piece_of(value)
    wide = transposed(piece[0]) if piece is not None else None
    if piece is None or wide is None or wide.shape is None:
        return None
    _, start, stop = piece
    assert before.graph is not None
    bounds = [rewriting.initializer(before.graph, "bound", np.array([at])) for at in (start, stop, 3)]
    (heads,) = insert(before, "Slice", [wide, *bounds])
    heads.type, heads.shape = wide.type, ir.Shape([*wide.shape[:3], stop - start])
    return heads


def _unrotated(value: ir.Value) -> tuple[_Rotation | None, ir.Value]:
    """Takes a rotation off heads, of the whole of each or, where the model cuts and joins them itself, of a part."""
    rotary, rest = producer(value, "Rotary", domain=MARKERS), None
    joined = producer(value, "Concat")
    if joined is not None and len(joined.inputs) == 2 and joined.attributes["axis"].as_int() in (-1, 3):
        rotary, rest = producer(joined.inputs[0], "Rotary", domain=MARKERS), joined.inputs[1]
    if rotary is None:
        return None, value
    x, cos, sin = rotary.inputs
    table = producer(cos, "RotaryTable", domain=MARKERS)
    if x is None or table is None or [cos, sin] != list(table.outputs):
        raise _Unfit("its rotation does not take its angles from a table by position")
    if any(constant(part) is None for part in table.inputs[1:]):
        raise _Unfit("its rotary table is computed at run time")
    if rest is not None:
        first, second = piece_of(x), piece_of(rest)
        if first is None or second is None or first[0] is not second[0]:
            raise _Unfit("its rotated and unrotated parts are not of the same heads")
        if first[1] != 0 or first[2] != second[1] or second[2] != columns(first[0]):
            raise _Unfit("its rotation is not of the first elements of each head")
        x = first[0]
    return _Rotation(table, bool(rotary.attributes.get_int("interleaved", 0))), x


def _unnormed(value: ir.Value, head: int) -> tuple[ir.Node | None, ir.Value]:
    norm = producer(value, "RmsNorm", domain=MARKERS)
    if norm is None or len(value.uses()) > 1 or norm.inputs[0] is None:
        return None, value
    weight = constant(norm.inputs[1])
    return (norm, norm.inputs[0]) if weight is not None and weight.shape == (head,) else (None, value)


def _common_rotation(sides: list[_Side], position_ids: ir.Value | None) -> _Rotation | None:
    q, k, v = (side.rotation for side in sides)
    if q != k:
        raise _Unfit("its queries and keys are rotated differently")
    if v is not None:
        raise _Unfit("its values are rotated")
    if q is not None and q.table.inputs[0] is not position_ids:
        raise _Unfit("its rotation and its cache have different positions")
    return q


def _common_norms(sides: list[_Side]) -> tuple[list[ir.Node | None], float]:
    norms = [side.norm for side in sides]
    if norms[2] is not None:
        raise _Unfit("its values are normalised head by head")
    epsilons = {norm.attributes["epsilon"].as_float() for norm in norms if norm is not None}
    if len(epsilons) > 1:
        raise _Unfit("the norms of its queries and keys have different epsilons")
    return norms[:2], epsilons.pop() if epsilons else 1e-6


def _half(table: ir.Value, interleaved: bool) -> np.ndarray:
    array = constant(table)
    size = array.shape[1]
    half = array[:, ::2] if interleaved else array[:, : size // 2]
    whole = np.repeat(half, 2, axis=1) if interleaved else np.concatenate((half, half), axis=1)
    if not np.array_equal(whole, array):
        raise _Unfit("its rotary table turns the two elements of a pair by different angles")
    return np.ascontiguousarray(half, np.float32)


RULES = (PutIn(), Packed())
