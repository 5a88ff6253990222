import numpy as np
import pytest
import tiny_models
from transformers import AutoConfig

from rocline.errors import ExportError
from rocline.export import samples

PROCESSORS = ("tokenizer.json", "preprocessor_config.json")


def make(kind, folder, **changes):
    task = tiny_models.save(kind, folder)
    return samples.make(task, folder, AutoConfig.from_pretrained(folder, **changes))


def test_sentences_of_different_lengths_are_padded_on_the_right(tmp_path):
    made = make("bert", tmp_path / "m")
    assert made.description == "4 sentences, together and one alone, through the model's tokenizer"
    together, alone = made.inputs
    assert set(together) == {"input_ids", "attention_mask", "token_type_ids"}
    assert all(array.dtype == np.int64 for array in together.values())
    lengths = together["attention_mask"].sum(axis=1)
    assert len(set(lengths)) == 4
    assert (np.diff(together["attention_mask"], axis=1) <= 0).all()
    assert alone["input_ids"].shape == (1, lengths[0])


def test_a_decoder_without_a_padding_token_can_be_batched(tmp_path):
    folder = tmp_path / "m"
    task = tiny_models.save("gpt2", folder)
    settings = (folder / "tokenizer_config.json").read_text().replace('"pad_token": "<pad>"', '"pad_token": null')
    (folder / "tokenizer_config.json").write_text(settings)
    (folder / "special_tokens_map.json").unlink()
    made = samples.make(task, folder, AutoConfig.from_pretrained(folder))
    assert made.inputs[0]["attention_mask"].min() == 0


def test_texts_follow_the_task(tmp_path):
    masked = make("roberta", tmp_path / "mask").inputs[0]
    assert (masked["input_ids"] == 3).sum() >= 1
    assert "questions with context" in make("bert-spans", tmp_path / "spans").description
    assert "instructions" in make("t5", tmp_path / "t5").description


def test_texts_are_cut_to_the_models_positions(tmp_path):
    made = make("bert", tmp_path / "m", max_position_embeddings=20)
    assert max(batch["input_ids"].shape[1] for batch in made.inputs) == 18


def test_pictures_and_voices(tmp_path):
    vit = make("vit", tmp_path / "vit")
    assert vit.description == "2 drawn pictures through the model's image processor"
    pixels = vit.inputs[0]["pixel_values"]
    assert (pixels.shape[:2], pixels.dtype) == ((2, 3), np.float32)
    assert pixels.std() > 0.1

    whisper = make("whisper", tmp_path / "whisper")
    assert whisper.inputs[0]["input_features"].dtype == np.float32
    wav2vec2 = make("wav2vec2", tmp_path / "wav2vec2")
    assert wav2vec2.description == "2 synthetic voices through the model's feature extractor"
    values = wav2vec2.inputs[0]
    assert values["input_values"].shape == (2, 16000)
    assert values["attention_mask"].sum(axis=1).tolist() == [16000, 9600]


@pytest.mark.parametrize(
    ("kind", "name", "what"),
    [
        ("bert", "input_ids", "random ids"),
        ("t5", "input_ids", "random ids"),
        ("vit", "pixel_values", "noise"),
        ("whisper", "input_features", "noise"),
        ("wav2vec2", "input_values", "noise"),
    ],
)
def test_without_tokenizer_or_processor_the_inputs_are_seeded_and_say_so(tmp_path, kind, name, what):
    folder = tmp_path / "m"
    task = tiny_models.save(kind, folder)
    for file in PROCESSORS:
        (folder / file).unlink(missing_ok=True)
    config = AutoConfig.from_pretrained(folder)
    first, second = (samples.make(task, folder, config) for _ in range(2))
    assert first.seeded
    assert what in first.description
    assert "the folder has no" in first.description
    np.testing.assert_array_equal(first.inputs[0][name], second.inputs[0][name])


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"makes token id \d+, but the model's vocabulary has 60 entries"):
        make("bert", tmp_path / "m", vocab_size=60)


@pytest.mark.parametrize(("kind", "file"), [("bert", "tokenizer.json"), ("vit", "preprocessor_config.json")])
def test_a_damaged_tokenizer_or_processor_is_one_line(tmp_path, kind, file):
    folder = tmp_path / "m"
    task = tiny_models.save(kind, folder)
    (folder / file).write_text("{")
    with pytest.raises(ExportError, match="cannot be used: ") as raised:
        samples.make(task, folder, AutoConfig.from_pretrained(folder))
    assert "\n" not in str(raised.value)
