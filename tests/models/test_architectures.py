"""Each architecture and each task: what a session gives for the exported model is what PyTorch gives, to 1e-4.

PyTorch's numbers are computed here, without a cache and without anything of rocline.export but the weights.
"""

import json

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from PIL import Image

from rocline.runtime.session import Session

TOLERANCE = 1e-4
TEXTS = ["The quick brown fox jumps over the lazy dog.", "Hi there."]
ENCODERS = ["bert", "bert-tokens", "bert-spans", "distilbert", "roberta", "vit", "yolos", "wav2vec2"]
DECODERS = ["llama", "qwen2", "mistral", "gpt2", "phi", "gemma"]
ENCODER_DECODERS = ["t5", "whisper"]


def test_every_architecture_is_compared():
    assert {*ENCODERS, *DECODERS, *ENCODER_DECODERS} == set(tiny_models.KINDS)


@pytest.fixture
def models(exported, tmp_path, tmp_path_factory):
    """`models(kind, **arguments)`: PyTorch's model, its folder, and the folder exported from the same weights."""

    def load(kind, **arguments):
        folder = tmp_path / kind
        task = tiny_models.save(kind, folder)
        architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
        model = getattr(transformers, architecture).from_pretrained(folder).eval()
        if kind in tiny_models.RECIPES and not arguments:
            return model, folder, exported(tiny_models.RECIPES[kind])
        source = tmp_path_factory.getbasetemp() / f"tiny-{kind}"
        if not source.exists():
            tiny_models.save(kind, source)
        return model, folder, exported(source, task=task, **arguments)

    return load


def waveforms():
    time = np.arange(9000) / 16_000
    return [
        np.float32(0.5) * np.sin(2 * np.pi * frequency * time * (1 + time)).astype(np.float32)
        for frequency in (220, 700)
    ]


def images():
    y, x = np.mgrid[0:40, 0:56]
    return [
        Image.fromarray(np.stack([x * 4, y * 6, (x * y) % 256], axis=-1).astype(np.uint8)),
        Image.fromarray(np.stack([y * 5, (x + y) * 2, x * 3], axis=-1).astype(np.uint8)),
    ]


def batch(folder, side="right"):
    """Two samples of different lengths (images and waveforms are of one), as the folder's own processor makes them."""
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] in ("vit", "yolos"):
        made = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)(images(), return_tensors="np")
    elif config["model_type"] in ("whisper", "wav2vec2"):
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        made = extractor(waveforms(), sampling_rate=16_000, return_tensors="np")
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side=side)
        made = tokenizer(TEXTS, padding=True, return_tensors="np")
    return dict(made)


def run_torch(model, **inputs):
    with torch.no_grad():
        return model(**{name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()})


def run(session, inputs):
    """Runs with those inputs that the model has; a past that is not given is empty, but for sizes tied to others."""
    given = {spec.name: inputs[spec.name] for spec in session.inputs if spec.name in inputs}
    sizes = {
        symbol: size
        for spec in session.inputs
        if spec.name in given
        for symbol, size in zip(spec.shape, given[spec.name].shape, strict=True)
    }
    for spec in session.inputs:
        if spec.name not in given:
            assert spec.name.startswith("past_key_values."), f"no value for {spec.name}"
            shape = [size if isinstance(size, int) else sizes.get(size, 0) for size in spec.shape]
            given[spec.name] = np.zeros(shape, spec.dtype)
    return session.run(given)


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoder(kind, models):
    model, folder, exported_folder = models(kind)
    inputs = batch(folder)
    with Session(exported_folder) as session:
        accepted = {spec.name for spec in session.inputs}
        inputs = {name: value for name, value in inputs.items() if name in accepted}
        outputs = run(session, inputs)
        names = [spec.name for spec in session.outputs]
    expected = run_torch(model, **inputs)
    assert names
    for name in names:
        np.testing.assert_allclose(outputs[name], getattr(expected, name).numpy(), rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("kind", DECODERS)
def test_decoder(kind, models):
    """A prompt of two rows padded on the left, then three steps, each fed with what the step before made.

    In Optimum's own graph: tests/fusion compares the static cache.
    """
    model, folder, exported_folder = models(kind, cache="growing")
    inputs = batch(folder, side="left")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    new, past = ids, {}
    with Session(exported_folder) as session:
        for step in range(4):
            positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
            feeds = {"input_ids": new, "attention_mask": mask, "position_ids": positions[:, -new.shape[1] :], **past}
            outputs = run(session, feeds)
            expected = run_torch(model, input_ids=ids, attention_mask=mask, position_ids=positions).logits.numpy()
            seen = mask[:, -new.shape[1] :] == 1
            np.testing.assert_allclose(
                outputs["logits"][seen], expected[:, -new.shape[1] :][seen], rtol=0, atol=TOLERANCE, err_msg=f"{step=}"
            )
            past = {
                name.replace("present.", "past_key_values."): value
                for name, value in outputs.items()
                if name.startswith("present.")
            }
            new = expected[:, -1].argmax(axis=-1)[:, None]
            ids = np.concatenate([ids, new], axis=1)
            mask = np.concatenate([mask, np.ones_like(new)], axis=1)


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_encoder_decoder(kind, models):
    """The encoder, then the merged decoder without a cache, then three steps with it."""
    model, folder, exported_folder = models(kind)
    inputs = batch(folder)
    with Session(exported_folder / "encoder_model.onnx") as session:
        hidden = run(session, inputs)["last_hidden_state"]
    expected = run_torch(model.get_encoder(), **inputs).last_hidden_state.numpy()
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=TOLERANCE)

    rows = len(hidden)
    ids = new = np.full((rows, 1), model.config.decoder_start_token_id, np.int64)
    past = {}
    with Session(exported_folder / "decoder_model_merged.onnx") as session:
        for step in range(4):
            feeds = {
                "input_ids": new,
                "encoder_hidden_states": hidden,
                "use_cache_branch": np.array([bool(past)]),
                **past,
            }
            if "attention_mask" in inputs:
                feeds["encoder_attention_mask"] = inputs["attention_mask"]
            outputs = run(session, feeds)
            expected = run_torch(model, **inputs, decoder_input_ids=ids).logits.numpy()
            np.testing.assert_allclose(outputs["logits"], expected[:, -1:], rtol=0, atol=TOLERANCE, err_msg=f"{step=}")
            # The cached branch gives the decoder's keys and values only: the encoder's stay as the first run made them.
            past |= {
                name.replace("present.", "past_key_values."): value
                for name, value in outputs.items()
                if name.startswith("present.") and (step == 0 or ".decoder." in name)
            }
            new = expected[:, -1].argmax(axis=-1)[:, None]
            ids = np.concatenate([ids, new], axis=1)
