"""Tiny random models: the same bytes for a seed, a tokenizer that loses nothing, and errors for what there is not."""

import pytest
import tiny_models
import torch
import transformers

from rocline.errors import ExportError
from rocline.export import random_models
from rocline.runtime.manifest import hash_files


@pytest.mark.parametrize("kind", ["llama", "wav2vec2"])
def test_a_seed_gives_the_same_bytes(kind, tmp_path):
    """wav2vec2 has biases that torch draws at random: those must not come through."""
    tiny_models.save(kind, tmp_path / "first")
    torch.rand(7)
    tiny_models.save(kind, tmp_path / "second")
    tiny_models.save(kind, tmp_path / "other", seed=1)
    first, second, other = (hash_files(tmp_path / name) for name in ("first", "second", "other"))
    assert first == second
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


def test_every_text_survives_the_tokenizer(tmp_path):
    tiny_models.save("llama", tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "naïve  日本語 🙂\n\ttab"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(ids) == len(text.encode())


def test_activations_keep_their_scale(tmp_path):
    """A model whose logits are all alike would let any export pass."""
    for kind in ("bert-tokens", "gpt2"):
        tiny_models.save(kind, tmp_path / kind)
        architecture = transformers.AutoConfig.from_pretrained(tmp_path / kind).architectures[0]
        model = getattr(transformers, architecture).from_pretrained(tmp_path / kind).eval()
        with torch.no_grad():
            logits = model(torch.arange(4, 36)[None]).logits
        assert 0.1 < logits.std() < 10


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "no-such", "architectures": ["BertModel"]},
        {"model_type": "bert", "architectures": ["NoSuchModel"]},
    ],
)
def test_unknown_architecture(config, tmp_path):
    with pytest.raises(ExportError, match=r"^random model: transformers \S+ has no model_type '[\w-]+' with arch"):
        random_models.build(config, 0, tmp_path / "model")
    assert not (tmp_path / "model").exists()
