"""A tiny decoder with a static cache, written by hand: tests of decoding without an export."""

import numpy as np
import small_models
from onnx import helper, numpy_helper

HEADS, KV_HEADS, SIZE, VOCABULARY, CONTEXT = 4, 2, 8, 50, 40
_HIDDEN = HEADS * SIZE


def static(*, head=False, poison=None):
    """One layer of attention between a token embedding and its transpose.

    Args:
        head: whether it ends in SampleToken.
        poison: an id whose embedding is NaN.
    """
    random = np.random.default_rng(0)

    def weights(name, *shape):
        return numpy_helper.from_array(random.normal(0, 0.5, shape).astype(np.float32), name)

    embedding = random.normal(0, 1, (VOCABULARY, _HIDDEN)).astype(np.float32)
    readout = random.normal(0, 1, (_HIDDEN, VOCABULARY)).astype(np.float32)
    if poison is not None:
        embedding[poison] = np.nan
    angles = np.arange(CONTEXT)[:, None] / 100.0 ** (np.arange(0, SIZE, 2) / SIZE)
    initializers = [
        numpy_helper.from_array(embedding, "embedding"),
        numpy_helper.from_array(readout, "readout"),
        numpy_helper.from_array(np.cos(angles).astype(np.float32), "cos"),
        numpy_helper.from_array(np.sin(angles).astype(np.float32), "sin"),
        numpy_helper.from_array(np.array([-1]), "last"),
        numpy_helper.from_array(np.array([1]), "one"),
        weights("wq", _HIDDEN, _HIDDEN),
        weights("wk", _HIDDEN, KV_HEADS * SIZE),
        weights("wv", _HIDDEN, KV_HEADS * SIZE),
    ]
    past, present = "past_key_values.0", "present.0"
    heads = {"heads": HEADS, "kv_heads": KV_HEADS, "domain": "rocline"}
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["x"]),
        *(helper.make_node("MatMul", ["x", f"w{name}"], [name]) for name in "qkv"),
        helper.make_node(
            "RotaryCache",
            ["q", "k", "v", f"{past}.key", f"{past}.value", "position_ids", "cos", "sin"],
            ["rotated", f"{present}.key", f"{present}.value"],
            rotary_dim=SIZE,
            **heads,
        ),
        helper.make_node(
            "CachedAttention", ["rotated", f"{present}.key", f"{present}.value", "position_ids"], ["seen", "w"], **heads
        ),
        helper.make_node("Add", ["x", "seen"], ["hidden"]),
        helper.make_node("Gather", ["hidden", "last"], ["final"], axis=1),
        helper.make_node("MatMul", ["final", "readout"], ["logits"]),
    ]
    cache = [1, KV_HEADS, "capacity", SIZE]
    inputs = [(name, small_models.INT64, ["batch_size", "sequence_length"]) for name in ("input_ids", "position_ids")]
    inputs += [(f"{past}.{part}", small_models.FLOAT, cache) for part in ("key", "value")]
    outputs = [("logits", small_models.FLOAT, ["batch_size", 1, VOCABULARY])]
    outputs += [(f"{present}.{part}", small_models.FLOAT, cache) for part in ("key", "value")]
    if head:
        given = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"]
        nodes += [
            helper.make_node("Squeeze", ["logits", "one"], ["rows"]),
            helper.make_node("SampleToken", ["rows", *given], ["next_token", "workspace"], domain="rocline"),
        ]
        kinds = {"top_k": small_models.INT32, "seed": small_models.INT64}
        shapes = {"seed": ["batch_size", 2]}
        inputs += [(n, kinds.get(n, small_models.FLOAT), shapes.get(n, ["batch_size"])) for n in given]
        outputs.append(("next_token", small_models.INT64, ["batch_size"]))
    return small_models.model(nodes, inputs, outputs, initializers, opsets={"": 17, "rocline": 1})
