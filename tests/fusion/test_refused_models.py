"""Releases of transformers and architectures that cannot be traced with markers at all."""

import pytest
import tiny_models
import transformers
from transformers import AutoModelForCausalLM, cache_utils, masking_utils, modeling_utils

from rocline.errors import ExportError
from rocline.export import markers
from rocline.export.markers import seams

pytestmark = pytest.mark.usefixtures("restored")


@pytest.mark.parametrize(
    ("home", "name"),
    [
        (modeling_utils, "ALL_ATTENTION_FUNCTIONS"),
        (masking_utils, "ALL_MASK_ATTENTION_FUNCTIONS"),
        (cache_utils, "DynamicSlidingWindowLayer"),
    ],
)
def test_a_seam_that_moved_is_refused(tmp_path, monkeypatch, home, name):
    tiny_models.save("llama", tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "source").eval()
    moved = getattr(home, name)
    monkeypatch.setattr(home, f"Moved{name}", moved, raising=False)
    monkeypatch.delattr(home, name)
    with pytest.raises(markers.Refused, match=f"has no {home.__name__}.{name}|{name}"):
        markers.trace(model, tmp_path, opset=18)
    monkeypatch.setattr(home, name, moved, raising=False)


@pytest.mark.parametrize("name", ["register", "_global_mapping"])
def test_a_registry_that_works_otherwise_is_refused(name):
    class Registry:
        __name__ = "Registry"

    with pytest.raises(markers.Refused, match=f"Registry has no {name}"):
        seams.seam_of(Registry(), name)


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        ("stablelm", {"architectures": ["StableLmForCausalLM"]}, "an attention works on the mask itself"),
        ("gptj", {"architectures": ["GPTJForCausalLM"], "rotary_dim": 4}, "an attention works on the mask itself"),
        ("falcon", {"architectures": ["FalconForCausalLM"]}, "makes its own attention mask, not shown to be causal"),
        ("bloom", {"architectures": ["BloomForCausalLM"], "max_position_embeddings": None}, "so no capacity is known"),
        (
            "llama",
            {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 7},
            "has 7 positions, tracing takes 8",
        ),
        ("mamba", {"architectures": ["MambaForCausalLM"]}, "takes no position_ids"),
        ("lfm2", {"architectures": ["Lfm2ForCausalLM"]}, "its cache has a layer of class Lfm2HybridConvCache"),
        ("gpt_oss", {"architectures": ["GptOssForCausalLM"], "num_local_experts": 4}, "passes 's_aux'"),
    ],
)
def test_architectures_that_markers_cannot_stand_for_are_refused(trace, kind, config, reason):
    with pytest.raises(markers.Refused, match=reason):
        trace(kind, **config)


def test_an_old_opset_is_refused(tmp_path):
    tiny_models.save("llama", tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "source").eval()
    with pytest.raises(markers.Refused, match="opset 12 is too old for its operators, expected 13 or later"):
        markers.trace(model, tmp_path, opset=12)
    markers.trace(model, tmp_path, opset=13)


def test_encoder_decoders_are_refused(tmp_path):
    tiny_models.save("t5", tmp_path / "source")
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "source").eval()
    with pytest.raises(markers.Refused, match="T5ForConditionalGeneration is an encoder-decoder"):
        markers.trace(model, tmp_path, opset=18)


def test_an_architecture_that_optimum_does_not_know_is_no_refusal(trace):
    with pytest.raises(ExportError, match="Optimum cannot export model_type 'starcoder2'") as raised:
        trace("starcoder2", architectures=["Starcoder2ForCausalLM"])
    assert not isinstance(raised.value, markers.Refused)
