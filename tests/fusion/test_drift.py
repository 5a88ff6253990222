"""What transformers, or a model, could do otherwise: each ends in a refusal, or unmarked with the right numbers.

Masks, caches and attention have a file of their own: test_drift_of_attention.py.
"""

import inspect

import marker_operators
import onnx
import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.cohere import modeling_cohere
from transformers.models.glm import modeling_glm
from transformers.models.llama import modeling_llama

from rocline.export import markers
from rocline.export.markers import seams

pytestmark = pytest.mark.usefixtures("restored")


def test_a_norm_with_another_formula_stays_as_it_is(trace, monkeypatch):
    def forward(self, x):
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", forward)
    model, graph = trace()
    assert "RmsNorm" not in graph.marked
    assert graph.unmarked == ("LlamaRMSNorm: another norm formula",) * 5
    assert graph.marked["Attention"] == 2
    assert max(marker_operators.deviation(model, graph.path).values()) <= 2e-5


def test_an_activation_with_another_formula_stays_as_it_is(trace, monkeypatch):
    monkeypatch.setattr(type(ACT2FN["silu"]), "forward", lambda self, x: x * torch.sigmoid(1.1 * x))
    model, graph = trace()
    assert "Activation" not in graph.marked
    assert max(marker_operators.deviation(model, graph.path).values()) <= 2e-5


def test_rotary_pairs_neighbours_whatever_the_function_is_called(trace, monkeypatch):
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_cohere.apply_rotary_pos_emb)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", modeling_cohere.CohereRotaryEmbedding.forward)
    model, graph = trace()
    kinds = [node.attribute[0].i for node in onnx.load(graph.path).graph.node if node.op_type == "Rotary"]
    assert kinds == [1, 1, 1, 1]
    assert max(marker_operators.deviation(model, graph.path).values()) <= 2e-5


HALVES = modeling_llama.apply_rotary_pos_emb


def rotates_backwards(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    return HALVES(q, k, cos, -sin)


def test_another_rotation_stays_as_it_is(trace, monkeypatch):
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rotates_backwards)
    model, graph = trace()
    assert not {"Rotary", "RotaryTable"} & set(graph.marked)
    assert graph.unmarked == (f"{__name__}.rotates_backwards: another rotary formula",)
    assert max(marker_operators.deviation(model, graph.path).values()) <= 2e-5


def test_neighbours_are_paired_by_a_table_of_halves_too(trace, monkeypatch):
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_glm.apply_rotary_pos_emb)
    model, graph = trace()
    kinds = [node.attribute[0].i for node in onnx.load(graph.path).graph.node if node.op_type == "Rotary"]
    assert kinds == [1, 1, 1, 1]
    assert max(marker_operators.deviation(model, graph.path).values()) <= 2e-5


def test_a_rotary_table_that_is_changed_on_its_way_stays_as_it_is(trace, monkeypatch):
    def faster(self, *given, position_embeddings, **more):
        cos, sin = position_embeddings
        return forward(self, *given, position_embeddings=(cos * 1.5, sin), **more)

    forward = modeling_llama.LlamaAttention.forward
    faster.__module__ = forward.__module__
    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", faster)
    model, graph = trace()
    assert not {"Rotary", "RotaryTable"} & set(graph.marked)
    assert graph.unmarked == (f"{forward.__module__}.apply_rotary_pos_emb: its table is changed before it is used",)
    assert max(marker_operators.deviation(model, graph.path).values()) <= 2e-5


@pytest.mark.parametrize(
    ("scaling", "reason"),
    [
        ({"rope_type": "dynamic", "factor": 4.0}, "depends on the sequence's length"),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "depends on the sequence's length",
        ),
    ],
)
def test_a_rotary_table_that_grows_is_refused(trace, scaling, reason):
    with pytest.raises(markers.Refused, match=reason):
        trace("llama", architectures=["LlamaForCausalLM"], rope_scaling=scaling)


def test_positions_that_are_not_the_graphs_own_stay_as_they_are(trace, monkeypatch):
    forward = modeling_llama.LlamaModel.forward

    def shifted(self, *given, position_ids=None, **more):
        return forward(self, *given, position_ids=None if position_ids is None else position_ids // 2, **more)

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", shifted)
    with pytest.raises(markers.Refused, match="the marked model gives other logits"):
        trace()


def test_other_logits_are_refused_by_the_rehearsal(trace, monkeypatch):
    append = seams.CacheAppend.forward
    monkeypatch.setattr(seams.CacheAppend, "forward", lambda ctx, past, new, ids: append(ctx, past, new * 1.01, ids))
    with pytest.raises(markers.Refused, match="the marked model gives other logits in prefill"):
        trace()


def test_a_model_without_output_embeddings_is_refused(trace, monkeypatch):
    monkeypatch.setattr(modeling_llama.LlamaForCausalLM, "get_output_embeddings", lambda self: None)
    with pytest.raises(markers.Refused, match="LlamaForCausalLM: has no output embeddings"):
        trace()


def test_output_embeddings_used_twice_are_refused(trace, monkeypatch):
    forward = modeling_llama.LlamaForCausalLM.forward

    def again(self, input_ids, *given, **more):
        output = forward(self, input_ids, *given, **more)
        output.logits = output.logits + 0 * self.lm_head(self.model.embed_tokens(input_ids))
        return output

    again.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(modeling_llama.LlamaForCausalLM, "forward", again)
    with pytest.raises(markers.Refused, match="output embeddings are used 2 times"):
        trace()


def plant_in_mlp(monkeypatch, change):
    """Has the input of every MLP changed first."""
    forward = modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: forward(self, change(x)))


def with_the_token_before(x):
    return x + torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]


def with_the_first_row(x):
    return x + 0.1 * x[:1]


def less_the_mean_of_all(x):
    return x - 0.5 * x.mean((0, 1))


@pytest.mark.parametrize(
    ("change", "step"),
    [(with_the_token_before, "decode"), (with_the_first_row, "prefill"), (less_the_mean_of_all, "prefill")],
)
def test_tokens_that_meet_outside_of_attention_are_refused(trace, monkeypatch, change, step):
    plant_in_mlp(monkeypatch, change)
    with pytest.raises(markers.Refused, match=f"the marked model gives other logits in {step}"):
        trace()


def far_along(x):
    # Never so in the rehearsal or in the samples that an export is compared on.
    return x * 2 if int(x.shape[1]) > 4096 else x


def loud(x):
    return x * 2 if x.abs().max() > 1e6 else x


@pytest.mark.parametrize("change", [far_along, loud])
def test_what_python_decides_by_a_tensors_value_is_refused(trace, monkeypatch, change):
    plant_in_mlp(monkeypatch, change)
    with pytest.raises(markers.Refused, match=r"test_drift\.py:\d+ lets Python decide by a tensor's value"):
        trace()


def test_what_pytorch_checks_is_no_decision_of_the_models(trace, monkeypatch):
    init = modeling_llama.LlamaModel.__init__

    def padded(self, config):
        init(self, config)
        # With one that is not 0, PyTorch compares it with the number of embeddings.
        self.embed_tokens.padding_idx = 2

    monkeypatch.setattr(modeling_llama.LlamaModel, "__init__", padded)
    _, graph = trace()
    assert graph.marked["Attention"] == 2


def test_a_layer_that_keeps_nothing_in_the_cache_is_refused(trace, monkeypatch):
    forward = modeling_llama.LlamaDecoderLayer.forward

    def skipping(self, hidden, **given):
        return hidden + self.mlp(hidden) if self.self_attn.layer_idx == 0 else forward(self, hidden, **given)

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", skipping)
    with pytest.raises(markers.Refused, match="its cache has a layer that stays empty"):
        trace()
