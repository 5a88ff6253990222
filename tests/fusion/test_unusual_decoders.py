"""Decoders that few others are like: what is unusual about them is in the fused graph, with PyTorch's numbers."""

import copy
import inspect

import onnx
import pytest
import static_decoding
import tiny_models
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from rocline.export import export_model
from rocline.export.quiet import quiet


@pytest.fixture
def after_init(monkeypatch):
    """Has every new object of a class of modeling_llama changed when it is made."""

    def plant(cls, change):
        init = cls.__init__

        def changed(self, *given, **named):
            init(self, *given, **named)
            change(self)

        changed.__signature__ = inspect.signature(init)
        monkeypatch.setattr(cls, "__init__", changed)

    return plant


@pytest.fixture
def around_attention(monkeypatch):
    """Has every attention of modeling_llama go through a function (forward, self, hidden_states, **given)."""
    forward = modeling_llama.LlamaAttention.forward

    def plant(change):
        def changed(self, hidden_states, **given):
            return change(forward, self, hidden_states, **given)

        changed.__module__ = forward.__module__
        monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", changed)

    return plant


def assert_fused_with_pytorchs_numbers(tmp_path):
    """Exports a tiny Llama; returns how often each rule did its work, and the graph."""
    tiny_models.save("llama", tmp_path / "source")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "source").eval()
    manifest = export_model(tmp_path / "source", tmp_path / "out")
    assert manifest.cache == "static"
    assert max(static_decoding.session_deviation(model, tmp_path / "out").values()) <= 1e-5
    made = {rule.rule: rule.count for rule in manifest.fusion["model.onnx"].rows}
    return made, onnx.load(tmp_path / "out" / "model.onnx").graph


def test_layers_with_scales_of_their_own(tmp_path, after_init):
    def change(attention):
        attention.scaling *= attention.layer_idx + 1

    after_init(modeling_llama.LlamaAttention, change)
    _, graph = assert_fused_with_pytorchs_numbers(tmp_path)
    attentions = [node for node in graph.node if node.op_type == "CachedAttention"]
    scales = [entry.f for node in attentions for entry in node.attribute if entry.name == "scale"]
    assert scales == pytest.approx([8**-0.5, 2 * 8**-0.5])


def test_layers_with_rotary_tables_of_their_own(tmp_path, after_init, around_attention):
    def change(attention):
        config = copy.deepcopy(attention.config)
        config.rope_theta *= attention.layer_idx + 2
        attention.own_rotary = modeling_llama.LlamaRotaryEmbedding(config)

    def rotated(forward, self, hidden_states, position_embeddings, position_ids, **given):
        own = self.own_rotary(hidden_states, position_ids)
        return forward(self, hidden_states, position_embeddings=own, position_ids=position_ids, **given)

    after_init(modeling_llama.LlamaAttention, change)
    around_attention(rotated)
    _, graph = assert_fused_with_pytorchs_numbers(tmp_path)
    assert {"rotary_cos", "rotary_cos_1"} <= {tensor.name for tensor in graph.initializer}


def test_a_gate_on_what_attention_gives(tmp_path, around_attention):
    def gated(forward, self, hidden_states, **given):
        output, weights = forward(self, hidden_states, **given)
        return output * torch.sigmoid(self.q_proj(hidden_states)), weights

    around_attention(gated)
    made, _ = assert_fused_with_pytorchs_numbers(tmp_path)
    assert (made["cached attention"], made["packed q, k, v"]) == (2, 0), "the projection to queries is read twice"


def test_queries_that_grow_with_their_position(tmp_path, around_attention):
    def warmer(forward, self, hidden_states, position_ids, **given):
        scale = 1 + torch.log1p(torch.floor((position_ids + 1) / 8.0))
        return forward(self, hidden_states * scale[..., None], position_ids=position_ids, **given)

    around_attention(warmer)
    made, graph = assert_fused_with_pytorchs_numbers(tmp_path)
    assert made["packed q, k, v"] == 2
    assert [node.op_type for node in graph.node].count("Floor") == 1


def test_keys_that_are_the_values(tmp_path, after_init, monkeypatch):
    def change(attention):
        attention.v_proj = attention.k_proj

    after_init(modeling_llama.LlamaAttention, change)
    monkeypatch.setattr(modeling_llama.LlamaForCausalLM, "_tied_weights_keys", ["lm_head.weight", r"\.v_proj\."])
    made, graph = assert_fused_with_pytorchs_numbers(tmp_path)
    assert made["packed q, k, v"] == 2
    packed = [tensor for tensor in graph.initializer if list(tensor.dims) == [32, 64]]
    assert len(packed) == 2


def test_layers_that_share_an_mlp(tmp_path, after_init, monkeypatch):
    def change(model):
        model.layers[1].mlp = model.layers[0].mlp

    after_init(modeling_llama.LlamaModel, change)
    monkeypatch.setattr(modeling_llama.LlamaForCausalLM, "_tied_weights_keys", ["lm_head.weight", r"layers\.1\.mlp\."])
    made, _ = assert_fused_with_pytorchs_numbers(tmp_path)
    assert (made["gated activation"], made["packed gate, up"]) == (2, 0), "a packed copy a layer would not be shared"


def test_layers_with_numbers_of_heads_of_their_own(tmp_path, monkeypatch):
    init = modeling_llama.LlamaAttention.__init__

    def ungrouped(self, config, layer_idx):
        config = copy.deepcopy(config)
        config.num_key_value_heads = (2, 4)[layer_idx]
        init(self, config, layer_idx)

    monkeypatch.setattr(modeling_llama.LlamaAttention, "__init__", ungrouped)
    _, graph = assert_fused_with_pytorchs_numbers(tmp_path)
    caches = [value for value in graph.input if value.name.endswith(".key")]
    assert [value.type.tensor_type.shape.dim[1].dim_value for value in caches] == [2, 4]


def test_no_last_norm_and_hooks_on_the_others(tmp_path, after_init):
    def change(model):
        model.norm = torch.nn.Identity()
        for layer in model.layers:
            layer.input_layernorm.register_forward_hook(lambda module, given, output: output * 1.7)

    after_init(modeling_llama.LlamaModel, change)
    made, _ = assert_fused_with_pytorchs_numbers(tmp_path)
    assert (made["skip rms norm"], made["traced rms norm"]) == (2, 2)
