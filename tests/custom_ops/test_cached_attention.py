"""CachedAttention against references that are not ours, and the ways in which one cache can be filled."""

import numpy as np
import onnxruntime
import op_harness as harness
import pytest
import torch
from onnx import TensorProto, helper

from rocline import custom_ops
from rocline.custom_ops.cached_attention.spec import positions
from rocline.custom_ops.rotary_cache.spec import inputs as rotary_inputs
from rocline.custom_ops.schema import Case

SPEC = custom_ops.specs()["CachedAttention"]
HEADS, KV_HEADS, HEAD, CAPACITY = 6, 2, 32, 96
TOLERANCE = {"rtol": 1e-5, "atol": 4e-6}


def attend(made, **attributes):
    case = Case("mine", made, {"heads": HEADS, "kv_heads": KV_HEADS, **attributes}, outputs=1)
    arrays = harness.make_inputs(SPEC, case, "float32")
    session = harness.make_session(harness.make_model(SPEC, case, "float32", arrays))
    return arrays, session.run(None, arrays)[0]


def shapes(batch, queries, keys=CAPACITY):
    cache = (batch, KV_HEADS, keys, HEAD)
    return {"q": (batch, queries, HEADS * HEAD), "present_k": cache, "present_v": cache}


def split_heads(q):
    return torch.from_numpy(q).reshape(*q.shape[:2], HEADS, HEAD).transpose(1, 2)


@pytest.mark.parametrize("queries", [1, 5, 40])
@pytest.mark.parametrize("biased", [False, True])
def test_agrees_with_torch_over_a_cache(queries, biased):
    first = CAPACITY - queries
    made = {**shapes(2, queries), "position_ids": positions(*[list(range(first, CAPACITY))] * 2)}
    if biased:
        made["bias"] = (2, HEADS, queries, CAPACITY)
    arrays, y = attend(made, scale=0.2)
    mask = torch.ones(queries, CAPACITY, dtype=torch.bool).tril(first)
    added = torch.zeros(()).masked_fill(~mask, -torch.inf)
    if biased:
        added = added + torch.from_numpy(arrays["bias"])
    k, v = (torch.from_numpy(arrays[name]) for name in ("present_k", "present_v"))
    wanted = torch.nn.functional.scaled_dot_product_attention(
        split_heads(arrays["q"]), k, v, attn_mask=added, scale=0.2, enable_gqa=True
    )
    np.testing.assert_allclose(y, wanted.transpose(1, 2).reshape(y.shape).numpy(), **TOLERANCE)


@pytest.mark.parametrize(("queries", "keys"), [(37, 37), (1, 50), (12, 80)])
def test_agrees_with_torch_without_a_cache(queries, keys):
    rows = [[0] * keys, [0] * (keys // 2) + [-1] * (keys - keys // 2)]
    arrays, y = attend({**shapes(2, queries, keys), "position_ids": positions(*rows)}, causal=0)
    shown = torch.from_numpy(arrays["position_ids"] >= 0)[:, None, None, :]
    k, v = (torch.from_numpy(arrays[name]) for name in ("present_k", "present_v"))
    wanted = torch.nn.functional.scaled_dot_product_attention(
        split_heads(arrays["q"]), k, v, attn_mask=shown, enable_gqa=True
    )
    np.testing.assert_allclose(y, wanted.transpose(1, 2).reshape(y.shape).numpy(), **TOLERANCE)


def grouped_query_attention(arrays, **attributes):
    """ONNX Runtime's own; the newest token of each row comes as k and v, those before it as the past."""
    names = ["q", "k", "v", "past_k", "past_v", "lengths", "total"]
    node = helper.make_node(
        "GroupQueryAttention",
        names,
        ["y", "present_k", "present_v"],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        **attributes,
    )
    last = arrays["position_ids"][:, -1]
    newest = [
        np.stack([arrays[name][row, :, last[row]] for row in range(len(last))]).reshape(len(last), 1, -1)
        for name in ("present_k", "present_v")
    ]
    lengths, total = last.astype(np.int32), np.array([last.max() + 1], np.int32)
    values = [arrays["q"], *newest, arrays["present_k"], arrays["present_v"], lengths, total]
    feeds = dict(zip(names, values, strict=True))
    infos = [
        helper.make_tensor_value_info(n, TensorProto.INT32 if a.dtype == np.int32 else TensorProto.FLOAT, a.shape)
        for n, a in feeds.items()
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "present_k", "present_v")]
    model = helper.make_model(
        helper.make_graph([node], "g", infos, outputs),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], feeds)[0]


@pytest.mark.parametrize("window", [0, 16])
def test_decode_agrees_with_onnx_runtime(window):
    made = {**shapes(3, 1), "position_ids": positions([CAPACITY - 1], [CAPACITY - 1], [CAPACITY - 1])}
    arrays, y = attend(made, window=window)
    # ONNX Runtime 1.22 keeps one key more than its window says.
    attributes = {"local_window_size": window - 1} if window else {}
    np.testing.assert_allclose(y, grouped_query_attention(arrays, **attributes), **TOLERANCE)


def test_decode_with_a_soft_cap_agrees_with_onnx_runtime():
    made = {**shapes(2, 1), "position_ids": positions([CAPACITY - 1], [CAPACITY - 1])}
    arrays, y = attend(made, soft_cap=1.5, scale=0.4)
    np.testing.assert_allclose(y, grouped_query_attention(arrays, softcap=1.5, scale=0.4), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def layer():
    """RotaryCache into CachedAttention: a function of a cache, which it updates in place, and the new tokens."""
    sizes = {"heads": HEADS, "kv_heads": KV_HEADS}
    names = [argument.name for argument in custom_ops.specs()["RotaryCache"].inputs[:8]]
    rotate = helper.make_node("RotaryCache", names, ["r", "present_k", "present_v"], domain="rocline", **sizes)
    made = ["r", "present_k", "present_v", "position_ids"]
    attend_node = helper.make_node("CachedAttention", made, ["y", "w"], domain="rocline", window=70, **sizes)
    values = [
        helper.make_tensor_value_info(n, TensorProto.INT64 if n == "position_ids" else TensorProto.FLOAT, None)
        for n in names
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "present_k", "present_v")]
    model = helper.make_model(
        helper.make_graph([rotate, attend_node], "layer", values, outputs),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("rocline", 1)],
        ir_version=8,
    )
    session = harness.make_session(model.SerializeToString())
    rng = np.random.default_rng(5)
    tables = {name: rotary_inputs(HEADS, KV_HEADS, HEAD, CAPACITY, [0])[name](rng) for name in ("cos", "sin")}

    def run(cache, tokens, position_ids):
        """``tokens``: q, k and v of every position; those of ``position_ids`` are fed."""
        position_ids = np.array(position_ids, np.int64)
        rows = np.arange(len(position_ids))[:, None]
        feeds = {name: np.ascontiguousarray(array[rows, position_ids]) for name, array in tokens.items()}
        feeds.update(tables, past_k=cache[0], past_v=cache[1], position_ids=position_ids)
        binding = session.io_binding()
        for name, array in feeds.items():
            element = TensorProto.INT64 if array.dtype == np.int64 else TensorProto.FLOAT
            binding.bind_input(name, "cpu", 0, element, array.shape, array.ctypes.data)
        for name, array in (("present_k", cache[0]), ("present_v", cache[1])):
            binding.bind_output(name, "cpu", 0, TensorProto.FLOAT, array.shape, array.ctypes.data)
        binding.bind_output("y", "cpu")
        session.run_with_iobinding(binding)
        return binding.get_outputs()[2].numpy()

    return run


BATCH = 2


def empty_cache():
    return [np.full((BATCH, KV_HEADS, CAPACITY, HEAD), np.nan, np.float32) for _ in range(2)]


def random_tokens(seed=3):
    rng = np.random.default_rng(seed)
    widths = {"q": HEADS * HEAD, "k": KV_HEADS * HEAD, "v": KV_HEADS * HEAD}
    return {name: rng.standard_normal((BATCH, CAPACITY, width), dtype=np.float32) for name, width in widths.items()}


@pytest.mark.parametrize("chunks", [[90], [1] * 90, [40, 1, 1, 48], [3, 7, 64, 16], [89, 1]])
def test_chunks_and_steps_give_what_the_whole_gives(layer, chunks):
    tokens = random_tokens()
    whole = layer(empty_cache(), tokens, [list(range(90))] * BATCH)
    cache, at, parts = empty_cache(), 0, []
    for size in chunks:
        parts.append(layer(cache, tokens, [list(range(at, at + size))] * BATCH))
        at += size
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, **TOLERANCE)


def test_rows_of_different_lengths_do_not_disturb_each_other(layer):
    tokens = random_tokens()
    whole = layer(empty_cache(), tokens, [list(range(60))] * BATCH)
    cache = empty_cache()
    first = layer(cache, tokens, [[-1] * 20 + list(range(30)), list(range(50))])
    second = layer(cache, tokens, [list(range(30, 40)), [-1] * 10])
    third = layer(cache, tokens, [list(range(40, 50)), list(range(50, 60))])
    np.testing.assert_allclose(first[0, 20:], whole[0, :30], **TOLERANCE)
    np.testing.assert_allclose(first[1], whole[1, :50], **TOLERANCE)
    np.testing.assert_allclose(second[0], whole[0, 30:40], **TOLERANCE)
    np.testing.assert_allclose(third, np.stack([whole[0, 40:50], whole[1, 50:60]]), **TOLERANCE)
    assert not first[0, :20].any() and not second[1].any(), "padding is zero"


def test_a_rewound_cache_forgets(layer):
    tokens, others = random_tokens(3), random_tokens(4)
    whole = layer(empty_cache(), tokens, [list(range(70))] * BATCH)
    cache = empty_cache()
    layer(cache, tokens, [list(range(40))] * BATCH)
    layer(cache, others, [list(range(40, 80))] * BATCH)
    again = layer(cache, tokens, [list(range(40, 70))] * BATCH)
    np.testing.assert_allclose(again, whole[:, 40:], **TOLERANCE)
