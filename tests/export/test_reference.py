"""The cases made for each kind of ONNX file: what is fed, what is compared, and what is left out."""

import numpy as np
import onnx
import pytest
from exported import exported

from rocline.errors import ExportError


def test_encoder_is_fed_what_the_tokenizer_made_and_padding_is_not_compared(tmp_path):
    bert = exported("bert", tmp_path)
    first, second = bert.cases()
    assert first.model == "model.onnx"
    assert set(first.feeds) == {"input_ids", "attention_mask", "token_type_ids"}
    mask = bert.samples.inputs[0]["attention_mask"].astype(bool)
    assert not mask.all()
    np.testing.assert_array_equal(first.real["last_hidden_state"], mask)
    assert first.expected["last_hidden_state"].dtype == np.float32
    assert second.real == {}


def test_decoder_gets_a_prefill_without_cache_and_a_step_with_the_cache_from_there(tmp_path):
    llama = exported("llama", tmp_path)
    prefill, step = llama.cases()[:2]
    assert (prefill.step, step.step) == ("prefill", "decode step")
    batch, length = prefill.feeds["input_ids"].shape
    assert prefill.feeds["past_key_values.0.key"].shape == (batch, 2, 0, 8)
    np.testing.assert_array_equal(step.feeds["past_key_values.1.value"], prefill.expected["present.1.value"])
    assert step.feeds["input_ids"].shape == (batch, 1)
    assert step.expected["present.0.key"].shape == (batch, 2, length + 1, 8)
    mask = prefill.feeds["attention_mask"]
    np.testing.assert_array_equal(step.feeds["position_ids"][:, 0], mask.sum(axis=1))
    np.testing.assert_array_equal(step.feeds["attention_mask"][:, :-1], mask)
    for row, count in enumerate(mask.sum(axis=1)):
        assert step.feeds["input_ids"][row, 0] == prefill.expected["logits"][row, count - 1].argmax()


def test_decode_step_equals_a_prefill_one_token_longer(tmp_path):
    import torch

    llama = exported("llama", tmp_path)
    prefill, step = llama.cases()[2:]
    whole = np.concatenate([prefill.feeds["input_ids"], step.feeds["input_ids"]], axis=1)
    with torch.no_grad():
        logits = llama.model(torch.from_numpy(whole)).logits.numpy()
    np.testing.assert_allclose(step.expected["logits"][:, 0], logits[:, -1], atol=1e-5)


def test_encoder_decoder_gets_both_branches_of_its_decoder(tmp_path):
    t5 = exported("t5", tmp_path)
    encoder, first, following = t5.cases()
    assert (encoder.model, first.model) == ("encoder_model.onnx", "decoder_model_merged.onnx")
    np.testing.assert_array_equal(first.feeds["encoder_hidden_states"], encoder.expected["last_hidden_state"])
    assert (first.feeds["use_cache_branch"][0], following.feeds["use_cache_branch"][0]) == (False, True)
    assert first.feeds["input_ids"].shape[1] > following.feeds["input_ids"].shape[1] == 1
    np.testing.assert_array_equal(
        following.feeds["past_key_values.0.encoder.key"], first.expected["present.0.encoder.key"]
    )
    # The cached branch does not compute the encoder's keys again.
    assert "present.0.encoder.key" not in following.expected
    assert first.real["present.0.encoder.key"].any()


def test_images_and_sounds(tmp_path):
    (image,) = exported("vit", tmp_path).cases()
    assert image.feeds["pixel_values"].dtype == np.float32
    assert set(image.expected) == {"logits"}
    (boxes,) = exported("yolos", tmp_path).cases()
    assert set(boxes.expected) == {"logits", "pred_boxes"}
    (sound,) = exported("wav2vec2", tmp_path).cases()
    assert sound.feeds["input_values"].ndim == 2


def test_feeds_have_the_dtypes_of_the_file(tmp_path):
    bert = exported("vit", tmp_path)
    model = onnx.load(bert.path)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, bert.path)
    (case,) = bert.cases()
    assert case.feeds["pixel_values"].dtype == np.float16
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    onnx.save(model, bert.path)
    (case,) = bert.cases()
    values = case.feeds["pixel_values"]
    assert values.dtype == np.float32
    assert not (values.view(np.uint32) & 0xFFFF).any()


def test_an_input_nobody_can_fill(tmp_path):
    bert = exported("bert", tmp_path)
    model = onnx.load(bert.path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("weather", onnx.TensorProto.FLOAT, [1]))
    onnx.save(model, bert.path)
    with pytest.raises(ExportError, match=r"model.onnx: input 'weather' of the feature-extraction model cannot be fil"):
        bert.cases()


def test_an_output_pytorch_does_not_have(tmp_path):
    bert = exported("bert", tmp_path)
    model = onnx.load(bert.path)
    model.graph.node.append(onnx.helper.make_node("Identity", ["last_hidden_state"], ["mood"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("mood", onnx.TensorProto.FLOAT, None))
    onnx.save(model, bert.path)
    with pytest.raises(ExportError, match=r"output 'mood' is not among those of BertModel: \['last_hidden_state'"):
        bert.cases()
