"""Models for programs on sessions: what a GPU's streams are tried with, small enough for a simulated device."""

import numpy as np
import small_models
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
HIDDEN, HEADS, WIDE, VOCABULARY, POSITIONS = 32, 4, 64, 40, 16


def matmul(size=32):
    """y = x @ w, [size, size]: a ring that feeds y back neither grows nor dies."""
    w = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0].astype(np.float32)
    return small_models.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["n", size])],
        [("y", FLOAT, ["n", size])],
        [numpy_helper.from_array(w, "w")],
    )


def add_scale(dtype=FLOAT):
    """y = (a + b) * 0.5, our own kernel."""
    return small_models.model(
        [helper.make_node("AddScale", ["a", "b"], ["y"], domain="rocline", scale=0.5)],
        [(name, dtype, ["n", "m"]) for name in "ab"],
        [("y", dtype, ["n", "m"])],
        opsets={"": 17, "rocline": 1},
    )


def chain():
    """y = ((x @ w) + x) * 0.5 : a kernel of the provider's BLAS, then one of ours."""
    return _product_and_sum("x", seed=1)


def chain_and_strings():
    """The same with strings s [k], which no buffer can hold, passed on as ``said``."""
    proto = chain()
    proto.graph.node.append(helper.make_node("Identity", ["s"], ["said"]))
    for values, name in ((proto.graph.input, "s"), (proto.graph.output, "said")):
        values.append(helper.make_tensor_value_info(name, small_models.STRING, ["k"]))
    return proto


def constant(kind):
    """c [2] or [1], which no value of x [2] reaches: a weight itself, ``shared`` with y = x + c or ``alone`` beside
    y = -x, or what is ``folded`` from one; or x's ``shape``.
    """
    w = helper.make_tensor("w", FLOAT, [2], [3, 4])
    if kind == "shared":
        nodes, name = [helper.make_node("Add", ["x", "w"], ["y"])], "w"
    elif kind == "alone":
        nodes, name = [helper.make_node("Neg", ["x"], ["y"])], "w"
    else:
        operator, source = ("Shape", "x") if kind == "shape" else ("Neg", "w")
        nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node(operator, [source], ["c"])]
        name = "c"
    given = (name, INT64, [1]) if kind == "shape" else (name, FLOAT, [2])
    return small_models.model(nodes, [("x", FLOAT, [2])], [("y", FLOAT, [2]), given], [w])


def rotation():
    """y = (t + t) * 0.5 with t = x @ w, which turns x: a long ring of it shows every step that is missing."""
    return _product_and_sum("t", seed=4)


def _product_and_sum(summand, seed):
    """y = (t + summand) * 0.5 with t = x @ w and w a rotation."""
    w = np.linalg.qr(np.random.default_rng(seed).standard_normal((32, 32)))[0].astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"]),
        helper.make_node("AddScale", ["t", summand], ["y"], domain="rocline", scale=0.5),
    ]
    return small_models.model(
        nodes,
        [("x", FLOAT, ["n", 32])],
        [("y", FLOAT, ["n", 32])],
        [numpy_helper.from_array(w, "w")],
        opsets={"": 17, "rocline": 1},
    )


def reshape():
    """y = x @ w in the shape that an input asks for, which ONNX Runtime reads on the host; y's shape is unknown."""
    w = np.random.default_rng(2).standard_normal((8, 8)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("Reshape", ["t", "shape"], ["y"])]
    return small_models.model(
        nodes,
        [("x", FLOAT, ["n", 8]), ("shape", INT64, ["rank"])],
        [("y", FLOAT, None)],
        [numpy_helper.from_array(w, "w")],
    )


def encoder(layers=2):
    """MiniLM's shape: embeddings, post-norm attention with a mask, erf GELU; mean over the tokens, normalised."""
    random = np.random.default_rng(3)
    weights, nodes = [], []

    def weight(name, *shape, scale=0.2):
        weights.append(numpy_helper.from_array((random.standard_normal(shape) * scale).astype(np.float32), name))
        return name

    def constant(name, value, dtype):
        weights.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def node(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def linear(x, name, wide_in, wide_out):
        product = node("MatMul", [x, weight(f"{name}.w", wide_in, wide_out)], f"{name}.product")
        return node("Add", [product, weight(f"{name}.b", wide_out)], f"{name}.out")

    def norm(x, name):
        scale = constant(f"{name}.scale", 1 + random.standard_normal(HIDDEN) / 10, np.float32)
        return node("LayerNormalization", [x, scale, weight(f"{name}.bias", HIDDEN)], f"{name}.out", axis=-1)

    def heads(x, name):
        split = node("Reshape", [x, "split"], f"{name}.split")
        return node("Transpose", [split], f"{name}.heads", perm=[0, 2, 1, 3])

    constant("split", [0, 0, HEADS, HIDDEN // HEADS], np.int64)
    constant("join", [0, 0, HIDDEN], np.int64)
    constant("scale", (HIDDEN // HEADS) ** -0.5, np.float32)
    constant("half", 0.5, np.float32)
    constant("one", 1, np.float32)
    constant("root", 2**0.5, np.float32)
    constant("low", -1e4, np.float32)
    constant("middle", [1, 2], np.int64)
    words = node("Gather", [weight("words", VOCABULARY, HIDDEN, scale=1), "input_ids"], "embedded")
    x = norm(node("Add", [words, weight("positions", 1, HIDDEN)], "placed"), "embeddings")
    mask = node("Cast", ["attention_mask"], "mask.float", to=FLOAT)
    mask = node("Sub", ["one", mask], "mask.off")
    mask = node("Mul", [mask, "low"], "mask.low")
    mask = node("Unsqueeze", [mask, "middle"], "mask.wide")
    for layer in range(layers):
        name = f"layer{layer}"
        q, k, v = (heads(linear(x, f"{name}.{part}", HIDDEN, HIDDEN), f"{name}.{part}") for part in "qkv")
        turned = node("Transpose", [k], f"{name}.kt", perm=[0, 1, 3, 2])
        scores = node("Mul", [node("MatMul", [q, turned], f"{name}.qk"), "scale"], f"{name}.scaled")
        weighed = node("Softmax", [node("Add", [scores, mask], f"{name}.masked")], f"{name}.probabilities", axis=-1)
        seen = node("Transpose", [node("MatMul", [weighed, v], f"{name}.seen")], f"{name}.back", perm=[0, 2, 1, 3])
        joined = node("Reshape", [seen, "join"], f"{name}.joined")
        x = norm(node("Add", [linear(joined, f"{name}.o", HIDDEN, HIDDEN), x], f"{name}.skip"), f"{name}.norm")
        wide = linear(x, f"{name}.up", HIDDEN, WIDE)
        gate = node("Add", [node("Erf", [node("Div", [wide, "root"], f"{name}.d")], f"{name}.erf"), "one"], f"{name}.g")
        wide = node("Mul", [node("Mul", [wide, gate], f"{name}.gated"), "half"], f"{name}.gelu")
        x = norm(node("Add", [linear(wide, f"{name}.down", WIDE, HIDDEN), x], f"{name}.skip2"), f"{name}.norm2")
    pooled, options = ["embedding", "workspace"], {"mode": "mean", "normalize": 1}
    nodes.append(helper.make_node("PoolNormalize", [x, "attention_mask"], pooled, domain="rocline", **options))
    ids = [(name, INT64, ["batch", "tokens"]) for name in ("input_ids", "attention_mask")]
    outputs = [("embedding", FLOAT, ["batch", HIDDEN])]
    return small_models.model(nodes, ids, outputs, weights, opsets={"": 17, "rocline": 1})


def decoder(layers=2):
    """Llama's shape, as an export fuses it: norms, rotary cache, grouped attention, gated products; a static cache."""
    random = np.random.default_rng(5)
    size, kv_heads = HIDDEN // HEADS, HEADS // 2
    weights, nodes = [], []

    def weight(name, *shape, scale=0.2):
        weights.append(numpy_helper.from_array((random.standard_normal(shape) * scale).astype(np.float32), name))
        return name

    def node(kind, inputs, outputs, **attributes):
        domain = "" if kind in ("Gather", "MatMul") else "rocline"
        nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def product(x, name, *shape):
        return node("MatMul", [x, weight(f"{name}.w", *shape)], [f"{name}.out"])

    def norm(x, name, skip=None):
        given = [x, weight(f"{name}.scale", HIDDEN, scale=1), *([skip] if skip else [])]
        return node("SkipRmsNorm", given, [f"{name}.out", *([f"{name}.sum"] if skip else [])], epsilon=1e-5)

    angles = np.arange(POSITIONS)[:, None] / 100.0 ** (np.arange(0, size, 2) / size)
    weights += [numpy_helper.from_array(f(angles).astype(np.float32), n) for f, n in ((np.cos, "cos"), (np.sin, "sin"))]
    weights.append(numpy_helper.from_array(np.array([-1]), "last"))
    x = node("Gather", [weight("embedding", VOCABULARY, HIDDEN, scale=1), "input_ids"], ["x"])
    inputs = [(name, INT64, ["batch_size", "sequence_length"]) for name in ("input_ids", "position_ids")]
    outputs, heads = [("logits", FLOAT, ["batch_size", 1, VOCABULARY])], {"heads": HEADS, "kv_heads": kv_heads}
    added = None
    for layer in range(layers):
        kinds = ("past_key_values", "present")
        past, present = ([f"{kind}.{layer}.{part}" for part in ("key", "value")] for kind in kinds)
        shape = [1, kv_heads, "capacity", size]
        inputs += [(name, FLOAT, shape) for name in past]
        outputs += [(name, FLOAT, shape) for name in present]
        normed = norm(x, f"{layer}.before", added)
        x = f"{layer}.before.sum" if added else x
        q, k, v = (
            product(normed, f"{layer}.{part}", HIDDEN, size * count)
            for part, count in (("q", HEADS), ("k", kv_heads), ("v", kv_heads))
        )
        rotated = [f"{layer}.rotated", *present]
        node("RotaryCache", [q, k, v, *past, "position_ids", "cos", "sin"], rotated, rotary_dim=size, **heads)
        seen = node("CachedAttention", [*rotated, "position_ids"], [f"{layer}.seen", f"{layer}.room"], **heads)
        attended = product(seen, f"{layer}.o", HIDDEN, HIDDEN)
        gated = product(norm(x, f"{layer}.after", attended), f"{layer}.gate", HIDDEN, 2 * WIDE)
        x = f"{layer}.after.sum"
        added = product(node("SwiGlu", [gated], [f"{layer}.act"]), f"{layer}.down", WIDE, HIDDEN)
    final = node("Gather", [norm(x, "final", added), "last"], ["hidden"], axis=1)
    node("MatMul", [final, weight("readout", HIDDEN, VOCABULARY)], ["logits"])
    # ONNX Runtime asks an operator for the shapes of its optional outputs in vain; an export writes them down.
    hidden = ["batch_size", "sequence_length", HIDDEN]
    sums = [(output, FLOAT, hidden) for node in nodes for output in node.output if output.endswith(".sum")]
    opsets = {"": 21, "rocline": 1}
    return small_models.model(nodes, inputs, outputs, weights, opsets=opsets, ir_version=10, value_infos=sums)
