"""RotaryCache: its buffers, and ONNX Runtime's own RotaryEmbedding as a second reference."""

import numpy as np
import onnxruntime
import op_harness as harness
import pytest
from onnx import TensorProto, helper

from rocline import custom_ops
from rocline.custom_ops.rotary_cache.spec import inputs
from rocline.custom_ops.schema import Case

SPEC = custom_ops.specs()["RotaryCache"]
HEADS, KV_HEADS, HEAD, CAPACITY = 4, 2, 32, 12


def arrays_of(*rows, **attributes):
    case = Case(
        "mine", inputs(HEADS, KV_HEADS, HEAD, CAPACITY, *rows), {"heads": HEADS, "kv_heads": KV_HEADS, **attributes}
    )
    arrays = harness.make_inputs(SPEC, case, "float32")
    return case, arrays, harness.make_session(harness.make_model(SPEC, case, "float32", arrays))


@pytest.mark.parametrize("interleaved", [0, 1])
def test_agrees_with_onnx_runtime(interleaved):
    _, arrays, session = arrays_of([3, 4, 5, 6, 7], [0, 1, 2, 3, 4], interleaved=interleaved)
    rotated, present_k, _ = session.run(None, arrays)
    for name, heads, ours in (("q", HEADS, rotated), ("k", KV_HEADS, None)):
        node = helper.make_node(
            "RotaryEmbedding",
            ["x", "position_ids", "cos", "sin"],
            ["y"],
            domain="com.microsoft",
            num_heads=heads,
            interleaved=interleaved,
        )
        feeds = {"x": arrays[name], **{n: arrays[n] for n in ("position_ids", "cos", "sin")}}
        values = [
            helper.make_tensor_value_info(n, TensorProto.INT64 if a.dtype == np.int64 else TensorProto.FLOAT, a.shape)
            for n, a in feeds.items()
        ]
        model = helper.make_model(
            helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]),
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
            ir_version=8,
        )
        theirs = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        wanted = theirs.run(None, feeds)[0]
        if ours is None:
            slots = arrays["position_ids"][:, None, :, None]
            ours = np.take_along_axis(present_k, slots, axis=2).transpose(0, 2, 1, 3).reshape(wanted.shape)
        np.testing.assert_allclose(ours, wanted, rtol=1e-6, atol=1e-6)


def bind(session, arrays, presents):
    """Runs with each present at a byte offset into a buffer: name -> (buffer, offset)."""
    binding = session.io_binding()
    for name, array in arrays.items():
        element = TensorProto.INT64 if array.dtype == np.int64 else TensorProto.FLOAT
        binding.bind_input(name, "cpu", 0, element, array.shape, array.ctypes.data)
    q = np.empty_like(arrays["q"])
    binding.bind_output("q_rotated", "cpu", 0, TensorProto.FLOAT, q.shape, q.ctypes.data)
    for name, (buffer, offset) in presents.items():
        binding.bind_output(name, "cpu", 0, TensorProto.FLOAT, arrays["past_k"].shape, buffer.ctypes.data + offset)
    session.run_with_iobinding(binding)


@pytest.mark.parametrize("at", ["ahead", "behind", "other", "each other"])
def test_a_partial_overlap_is_refused(at):
    _, arrays, session = arrays_of([3, 4])
    past_k = arrays["past_k"]
    room = np.zeros(2 * past_k.size, np.float32)
    shift = 4 * HEAD
    apart = np.empty_like(past_k)
    arrays["past_k"] = room[HEAD : HEAD + past_k.size].reshape(past_k.shape)
    presents = {
        "ahead": {"present_k": (room, 2 * shift), "present_v": (apart, 0)},
        "behind": {"present_k": (room, 0), "present_v": (apart, 0)},
        "other": {"present_k": (arrays["past_v"], 0), "present_v": (apart, 0)},
        "each other": {"present_k": (apart, 0), "present_v": (apart, 0)},
    }[at]
    before = room.copy(), arrays["past_v"].copy()
    with pytest.raises(Exception, match=r"RotaryCache: input 'past_[kv]': .* output 'present_[kv]' .* overlaps '"):
        bind(session, arrays, presents)
    for array, old in zip((room, arrays["past_v"]), before, strict=True):
        np.testing.assert_array_equal(array, old, err_msg="a refused run wrote a buffer")


def test_one_cache_may_be_in_place_and_the_other_not():
    case, arrays, session = arrays_of([3, -1], [11, 0])
    wanted = harness.expected(SPEC, case, arrays)
    apart = np.full_like(arrays["past_v"], np.nan)
    bind(session, arrays, {"present_k": (arrays["past_k"], 0), "present_v": (apart, 0)})
    harness.compare(SPEC, "float32", {"present_k": arrays["past_k"], "present_v": apart}, wanted)


def test_a_refused_position_writes_nothing():
    _, arrays, session = arrays_of([3, CAPACITY])
    before = arrays["past_k"].copy()
    with pytest.raises(Exception, match=f"found {CAPACITY} in row 0"):
        bind(session, arrays, {"present_k": (arrays["past_k"], 0), "present_v": (arrays["past_v"], 0)})
    np.testing.assert_array_equal(arrays["past_k"], before)
