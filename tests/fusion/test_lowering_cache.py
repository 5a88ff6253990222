"""Marked attention over a cache -> RotaryCache and CachedAttention: what matches, what it becomes, what must not."""

import marker_graphs
import numpy as np
import pytest

from rocline.custom_ops.cached_attention.rule import PutIn as AttentionPutIn
from rocline.custom_ops.rotary_cache.rule import Packed, PutIn

BATCH, TOKENS, CAPACITY, POSITIONS, HIDDEN = 3, 4, 9, 16, 12
HEADS, KV_HEADS, HEAD = 4, 2, 8
# Outputs of a few units, after sums in another order.
TOLERANCE = 1e-5
SIZES = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
RULES = (PutIn(), Packed(), AttentionPutIn())
# Rows that start late, are padded on either side, or are padding alone.
POSITION_IDS = np.array([[2, 3, 4, 5], [-1, -1, 0, 1], [7, -1, -1, -1]])


def randn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def tables(width, interleaved=False):
    angle = np.arange(POSITIONS)[:, None] / 100.0 ** (np.arange(width // 2) / (width // 2))
    angle = np.repeat(angle, 2, -1) if interleaved else np.concatenate((angle, angle), -1)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


class Block:
    """One attention, to be changed here and there before it is made."""

    def __init__(self):
        self.nodes, self.constants = [], {}
        self.inputs = {
            "x": (randn(BATCH, TOKENS, HIDDEN), ["batch", "tokens", HIDDEN]),
            "position_ids": (POSITION_IDS, ["batch", "tokens"]),
        }
        for part in "kv":
            past = randn(BATCH, KV_HEADS, CAPACITY, HEAD, seed=5)
            self.inputs[f"past_{part}"] = (past, ["batch", KV_HEADS, "capacity", HEAD])
        self.outputs = {"y": ["batch", "tokens", HEADS * HEAD]}
        self.outputs |= {f"present_{part}": ["batch", KV_HEADS, "capacity", HEAD] for part in "kv"}

    def add(self, op, inputs, output, **attributes):
        self.nodes.append((op, inputs, [output], attributes))
        return output

    def constant(self, name, array):
        self.constants[name] = np.asarray(array)
        return name

    def project(self, part, bias=False):
        weight = self.constant(f"w_{part}", randn(HIDDEN, SIZES[part] * HEAD, seed=ord(part)))
        value = self.add("MatMul", ["x", weight], f"{part}_product")
        if bias:
            value = self.add("Add", [self.constant(f"b_{part}", randn(SIZES[part] * HEAD, seed=9)), value], f"{part}_b")
        return value

    def heads(self, part, value, norm=None, transposed=True):
        shape = self.constant(f"heads_{part}", np.array([0, 0, SIZES[part], HEAD]))
        value = self.add("Reshape", [value, shape], f"{part}_heads")
        if norm is not None:
            weight = self.constant(f"norm_{part}", randn(HEAD, seed=3))
            value = self.add("RmsNorm", [value, weight], f"{part}_normed", epsilon=norm)
        return self.add("Transpose", [value], f"{part}_transposed", perm=[0, 2, 1, 3]) if transposed else value

    def table(self, width=HEAD, interleaved=False, position_ids="position_ids", name=""):
        cos, sin = (
            self.constant(f"{kind}{name}", array)
            for kind, array in zip(("cos", "sin"), tables(width, interleaved), strict=True)
        )
        self.nodes.append(("RotaryTable", [position_ids, cos, sin], [f"c{name}", f"s{name}"]))

    def rotate(self, part, value, interleaved=False, name=""):
        return self.add("Rotary", [value, f"c{name}", f"s{name}"], f"{part}_turned", interleaved=int(interleaved))

    def attend(self, q, k, v, *, scale=0.3, soft_cap=0.0, window=-1, head=HEAD, position_ids="position_ids"):
        self.add("CacheAppend", ["past_k", k, position_ids], "present_k")
        self.add("CacheAppend", ["past_v", v, position_ids], "present_v")
        sizes = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": head}
        given = {"scale": scale, "soft_cap": soft_cap, "window": window, **sizes}
        self.add("Attention", [q, "present_k", "present_v", "position_ids"], "attended", **given)
        shape = self.constant("joined", np.array([0, 0, HEADS * HEAD]))
        self.add("Reshape", ["attended", shape], "y")
        return self

    def made(self):
        return marker_graphs.graph(self.nodes, self.inputs, self.outputs, self.constants)


def plain(rotary=True, norm=None, bias=(), **attention):
    block = Block()
    if rotary:
        block.table()
    parts = {}
    for part in "qkv":
        value = block.project(part, part in bias)
        value = block.heads(part, value, norm if part != "v" else None)
        parts[part] = block.rotate(part, value) if rotary and part != "v" else value
    return block.attend(parts["q"], parts["k"], parts["v"], **attention)


def interleaved():
    block = Block()
    block.table(interleaved=True)
    q, k, v = (block.heads(part, block.project(part)) for part in "qkv")
    return block.attend(block.rotate("q", q, True), block.rotate("k", k, True), v)


def partial():
    block = Block()
    block.table(4)
    q, k, v = (block.heads(part, block.project(part)) for part in "qkv")
    return block.attend(block.rotate("q", q), block.rotate("k", k), v)


def cut_by_the_model():
    """As Phi does it: the model cuts the rotated part of each head off and joins both parts again."""
    block = Block()
    block.table(4)
    parts = {}
    for part in "qkv":
        value = parts[part] = block.heads(part, block.project(part))
        if part != "v":
            bounds = [block.constant(f"at_{at}", np.array([at])) for at in (0, 4, HEAD)]
            axis = block.constant("axis", np.array([3]))
            turned = block.add("Slice", [value, *bounds[:2], axis], f"{part}_first")
            rest = block.add("Slice", [value, *bounds[1:], axis], f"{part}_rest")
            parts[part] = block.add("Concat", [block.rotate(part, turned), rest], f"{part}_joined", axis=-1)
    return block.attend(parts["q"], parts["k"], parts["v"])


def split():
    """As GPT-2 and Phi-3 do it: one projection, cut in three."""
    block = Block()
    block.table()
    width = (HEADS + 2 * KV_HEADS) * HEAD
    product = block.add("MatMul", ["x", block.constant("w", randn(HIDDEN, width))], "product")
    sizes = block.constant("sizes", np.array([HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD]))
    block.nodes.append(("Split", [product, sizes], ["q_cut", "k_cut", "v_cut"], {"axis": -1}))
    q, k, v = (block.heads(part, f"{part}_cut") for part in "qkv")
    return block.attend(block.rotate("q", q), block.rotate("k", k), v)


EXACT = {
    "halves": (plain, {}, {"interleaved": 0, "rotary_dim": 0}),
    "interleaved": (interleaved, {}, {"interleaved": 1, "rotary_dim": 0}),
    "the first elements": (partial, {}, {"rotary_dim": 4}),
    "cut by the model": (cut_by_the_model, {}, {"rotary_dim": 4}),
    "no rotation": (plain, {"rotary": False}, {"rotary_dim": 0}),
    "norms": (plain, {"norm": 1e-3}, {"epsilon": np.float32(1e-3)}),
    "norms without rotation": (plain, {"norm": 1e-3, "rotary": False}, {"epsilon": np.float32(1e-3)}),
    "biases": (plain, {"bias": "qkv"}, {}),
    "some biases": (plain, {"bias": "qv"}, {}),
    "one projection": (split, {}, {}),
}


@pytest.mark.parametrize(("make", "given", "attributes"), EXACT.values(), ids=EXACT)
def test_a_cache_is_one_node_behind_one_projection(make, given, attributes, tmp_path):
    marked = make(**given).made()
    lowered = marker_graphs.apply(marked, *RULES)
    assert [(outcome.made, outcome.matched, outcome.refused) for outcome in lowered.outcomes] == [
        ("RotaryCache", 1, ()),
        ("RotaryCache", 1, ()),
        ("CachedAttention", 1, ()),
    ]
    biases = {"Add": 1} if given.get("bias") else {}
    assert lowered.operators == {"MatMul": 1, **biases, "RotaryCache": 1, "CachedAttention": 1}
    sizes = {"heads": HEADS, "kv_heads": KV_HEADS}
    assert {**sizes, **attributes}.items() <= lowered.attributes("RotaryCache").items()
    assert max(marker_graphs.deviation(marked, lowered, tmp_path).values()) <= TOLERANCE


@pytest.mark.parametrize(
    ("given", "attributes"),
    [
        ({}, {"window": 0, "soft_cap": 0.0, "scale": np.float32(0.3)}),
        ({"window": 3}, {"window": 3}),
        ({"soft_cap": 2.0}, {"soft_cap": 2.0}),
        ({"scale": 1.0}, {"scale": 1.0}),
    ],
)
def test_attention_keeps_what_the_model_meant(given, attributes, tmp_path):
    marked = plain(**given).made()
    lowered = marker_graphs.apply(marked, *RULES)
    assert attributes.items() <= lowered.attributes("CachedAttention").items()
    assert max(marker_graphs.deviation(marked, lowered, tmp_path).values()) <= TOLERANCE


def test_heads_that_hold_q_k_and_v_become_a_projection_in_their_order(tmp_path):
    """As GPT-NeoX does it: one projection to heads of three parts, cut after they are transposed."""
    block = Block()
    block.inputs |= {
        f"past_{part}": (randn(BATCH, HEADS, CAPACITY, HEAD, seed=5), ["batch", HEADS, "capacity", HEAD])
        for part in "kv"
    }
    block.outputs |= {f"present_{part}": ["batch", HEADS, "capacity", HEAD] for part in "kv"}
    block.table(4)
    product = block.add("MatMul", ["x", block.constant("w", randn(HIDDEN, 3 * HEADS * HEAD))], "product")
    product = block.add("Add", [product, block.constant("b", randn(3 * HEADS * HEAD))], "biased")
    wide = block.add("Reshape", [product, block.constant("wide", np.array([0, 0, HEADS, 3 * HEAD]))], "heads")
    wide = block.add("Transpose", [wide], "transposed", perm=[0, 2, 1, 3])
    bounds = [block.constant(f"at_{at}", np.array([at * HEAD])) for at in range(4)]
    axis = block.constant("axis", np.array([3]))
    q, k, v = (
        block.add("Slice", [wide, bounds[at], bounds[at + 1], axis], part) for at, part in enumerate(("q", "k", "v"))
    )
    block.attend(block.rotate("q", q), block.rotate("k", k), v)
    sizes = {"heads": HEADS, "kv_heads": HEADS, "head_dim": HEAD}
    block.nodes[-2] = (*block.nodes[-2][:3], {**block.nodes[-2][3], **sizes})
    marked = block.made()
    lowered = marker_graphs.apply(marked, *RULES)
    assert lowered.operators == {"MatMul": 1, "Add": 1, "RotaryCache": 1, "CachedAttention": 1}
    assert max(marker_graphs.deviation(marked, lowered, tmp_path).values()) <= TOLERANCE


def test_a_factor_of_the_queries_goes_into_the_weight(tmp_path):
    block = Block()
    q = block.add("Mul", [block.project("q", bias=True), block.constant("factor", np.float32(0.25))], "scaled")
    k, v = (block.heads(part, block.project(part, bias=True)) for part in "kv")
    marked = block.attend(block.heads("q", q), k, v).made()
    lowered = marker_graphs.apply(marked, *RULES)
    assert lowered.operators == {"MatMul": 1, "Add": 1, "RotaryCache": 1, "CachedAttention": 1}
    assert max(marker_graphs.deviation(marked, lowered, tmp_path).values()) <= TOLERANCE


def test_layers_share_their_tables():
    first, second = plain(), plain()
    renamed = {f"past_{part}": f"past_{part}_2" for part in "kv"} | {
        f"present_{part}": f"present_{part}_2" for part in "kv"
    }

    def name(value):
        shared = value in ("x", "position_ids", "c", "s") or value in second.constants
        return value if shared else renamed.get(value, f"{value}_2")

    for op, inputs, outputs, *more in second.nodes[1:]:
        first.nodes.append((op, [name(value) for value in inputs], [name(value) for value in outputs], *more))
    first.inputs |= {renamed[value]: given for value, given in second.inputs.items() if value in renamed}
    first.outputs |= {name(value): shape for value, shape in second.outputs.items()}
    lowered = marker_graphs.apply(first.made(), PutIn())
    one, other = lowered.nodes("RotaryCache")
    assert one.inputs[6:8] == other.inputs[6:8]
    assert [value.shape.numpy() for value in one.inputs[6:8]] == [(POSITIONS, HEAD // 2)] * 2


def rotated_values():
    block = Block()
    block.table()
    q, k, v = (block.rotate(part, block.heads(part, block.project(part))) for part in "qkv")
    return block.attend(q, k, v)


def keys_as_they_are():
    block = Block()
    block.table()
    q, k, v = (block.heads(part, block.project(part)) for part in "qkv")
    return block.attend(block.rotate("q", q), k, v)


def other_pairs():
    block = Block()
    block.table()
    q, k, v = (block.heads(part, block.project(part)) for part in "qkv")
    return block.attend(block.rotate("q", q), block.rotate("k", k, True), v)


def uneven_table():
    block = interleaved()
    for name, table in zip(("cos", "sin"), tables(HEAD), strict=True):
        block.constants[name] = table
    return block


def angles_of_other_positions():
    block = plain()
    block.inputs["others"] = block.inputs["position_ids"]
    block.nodes[0] = ("RotaryTable", ["others", *block.nodes[0][1][1:]], block.nodes[0][2])
    return block


def cache_of_other_positions():
    block = Block()
    block.inputs["others"] = block.inputs["position_ids"]
    q, k, v = (block.heads(part, block.project(part)) for part in "qkv")
    return block.attend(q, k, v, position_ids="others")


def other_epsilons():
    block = plain(norm=1e-3)
    at = next(at for at, node in enumerate(block.nodes) if node[2] == ["k_normed"])
    block.nodes[at] = (*block.nodes[at][:3], {"epsilon": 1e-5})
    return block


def keys_from_elsewhere():
    block = plain()
    at = next(at for at, node in enumerate(block.nodes) if node[2] == ["present_k"])
    block.nodes[at] = ("Identity", ["past_k"], ["present_k"])
    return block


UNFIT = {
    rotated_values: "its values are rotated",
    keys_as_they_are: "its queries and keys are rotated differently",
    other_pairs: "its queries and keys are rotated differently",
    uneven_table: "its rotary table turns the two elements of a pair by different angles",
    angles_of_other_positions: "its rotation and its cache have different positions",
    cache_of_other_positions: "its queries and its cache have different positions",
    other_epsilons: "the norms of its queries and keys have different epsilons",
    keys_from_elsewhere: "its keys and values do not come from the cache",
}


@pytest.mark.parametrize(("make", "reason"), UNFIT.items(), ids=[make.__name__ for make in UNFIT])
def test_what_the_operator_cannot_do_stays_a_marker(make, reason):
    lowered = marker_graphs.apply(make().made(), *RULES)
    put_in, packed, attention = lowered.outcomes
    assert (put_in.matched, packed.matched, attention.matched) == (0, 0, 0)
    assert [refusal.reason for refusal in put_in.refused] == [reason]
    assert [refusal.reason for refusal in attention.refused] == ["its keys and values are not RotaryCache's"]
    assert lowered.operators["Attention"] == 1


def test_large_heads_stay_a_marker():
    block = plain()
    at = next(at for at, node in enumerate(block.nodes) if node[2] == ["attended"])
    block.nodes[at] = (*block.nodes[at][:3], {**block.nodes[at][3], "head_dim": 264})
    (outcome,) = marker_graphs.apply(block.made(), AttentionPutIn()).outcomes
    assert [refusal.reason for refusal in outcome.refused] == ["heads of 264 elements, CachedAttention takes up to 256"]


@pytest.mark.parametrize("zero", ["window", "scale"])
def test_a_zero_that_means_something_else_stays_a_marker(zero):
    lowered = marker_graphs.apply(plain(**{zero: 0 if zero == "window" else 0.0}).made(), *RULES)
    assert [refusal.reason for refusal in lowered.outcomes[-1].refused] == ["a window or a scale of 0"]
    assert lowered.operators["Attention"] == 1


def shared_weight():
    block = plain()
    block.outputs["again"] = ["batch", "tokens", "columns"]
    block.add("MatMul", [block.add("Neg", ["x"], "negative"), "w_k"], "again")
    return block


def product_read_elsewhere():
    block = plain()
    block.outputs["again"] = ["batch", "tokens", "columns"]
    block.add("Neg", ["v_product"], "again")
    return block


def other_inputs():
    block = plain()
    at = next(at for at, node in enumerate(block.nodes) if node[2] == ["k_product"])
    block.nodes.insert(0, ("Neg", ["x"], ["negative"]))
    block.nodes[at + 1] = ("MatMul", ["negative", "w_k"], ["k_product"])
    return block


def weight_of_this_run():
    block = plain()
    block.inputs["w_v"] = (block.constants.pop("w_v"), [HIDDEN, KV_HEADS * HEAD])
    return block


UNPACKED = {
    shared_weight: "its projections are used elsewhere too",
    product_read_elsewhere: "its projections are used elsewhere too",
    other_inputs: "its projections are of different inputs",
    weight_of_this_run: "what it reads are not all projections by a constant weight",
}


@pytest.mark.parametrize(("make", "reason"), UNPACKED.items(), ids=[make.__name__ for make in UNPACKED])
def test_projections_that_cannot_be_packed_stay_three(make, reason, tmp_path):
    marked = make().made()
    lowered = marker_graphs.apply(marked, *RULES)
    _, packed, _ = lowered.outcomes
    assert packed.matched == 0
    assert [refusal.reason for refusal in packed.refused] == [reason]
    assert lowered.operators["MatMul"] == sum(node[0] == "MatMul" for node in make().nodes)
    assert max(marker_graphs.deviation(marked, lowered, tmp_path).values()) <= TOLERANCE
