"""Settings of a config.json that change what a forward returns, and models that few others are like."""

import json

import pytest
import tiny_models

from rocline.errors import ExportError
from rocline.export import export_model, random_models

_RETURNS = {"return_dict": False, "torchscript": True, "output_attentions": True, "output_hidden_states": True}
_GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_layer": 2, "n_head": 4}


@pytest.mark.parametrize(
    ("kind", "cache", "settings"),
    [
        ("llama", "static", {"use_cache": False, **_RETURNS}),
        ("gpt2", "static", {"use_cache": False, **_RETURNS}),
        ("gpt2", "growing", {"use_cache": False, **_RETURNS}),
        ("bert", "none", _RETURNS),
        ("t5", "growing", {"use_cache": False, **_RETURNS}),
    ],
)
def test_what_a_config_wants_returned_changes_nothing(tmp_path, kind, cache, settings):
    tiny_models.save(kind, tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    wanted = {} if cache == "none" else {"cache": cache}
    manifest = export_model(tmp_path / "source", tmp_path / "out", **wanted, parity_bound=1e-4)
    assert manifest.cache == cache
    assert not manifest.notes


@pytest.mark.parametrize("options", [{"cache": "growing"}, {"target": "migraphx"}, {"task": "feature-extraction"}])
def test_a_soft_cap_is_in_the_plain_graph_too(tmp_path, options):
    tiny_models.save("gemma2", tmp_path / "source")
    export_model(tmp_path / "source", tmp_path / "out", **options, parity_bound=1e-4)


def test_a_decoder_with_cross_attention_that_is_not_used(tmp_path):
    random_models.build({**_GPT2, "add_cross_attention": True}, 0, tmp_path / "source")
    manifest = export_model(tmp_path / "source", tmp_path / "out", parity_bound=1e-4)
    assert manifest.cache == "growing"
    assert "its cache has a layer of class EncoderDecoderCache, expected DynamicLayer" in manifest.notes[0]


def test_where_neither_graph_can_be_had_both_reasons_are_given(tmp_path):
    config = {"model_type": "phi", "architectures": ["PhiForCausalLM"], **tiny_models.GROUPED, "qk_layernorm": True}
    random_models.build(config, 0, tmp_path / "source")
    message = r"Optimum could not export .*; cache 'growing' instead of 'static': no operator"
    with pytest.raises(ExportError, match=message):
        export_model(tmp_path / "source", tmp_path / "out")


def test_a_layer_that_keeps_nothing_in_the_cache(tmp_path, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    forward = LlamaDecoderLayer.forward

    def skipping(self, hidden, **given):
        return hidden + self.mlp(hidden) if self.self_attn.layer_idx == 0 else forward(self, hidden, **given)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", skipping)
    tiny_models.save("llama", tmp_path / "source")
    with pytest.raises(ExportError, match=r"output 'present.0.key': LlamaForCausalLM keeps no such cache"):
        export_model(tmp_path / "source", tmp_path / "out")


def test_a_model_that_pytorch_does_not_run_on_the_samples(tmp_path):
    config = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 4, "intermediate_size": 64, "chunk_size_feed_forward": 4}
    random_models.build(config, 0, tmp_path / "source")
    message = "PyTorch fails to run the feature-extraction model on 4 sentences.*: The dimension to be chunked"
    with pytest.raises(ExportError, match=message):
        export_model(tmp_path / "source", tmp_path / "out")
