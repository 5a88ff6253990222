"""What transformers, or a model, could do otherwise: each ends in a refusal, or unmarked with the right numbers."""

import inspect

import marker_operators
import onnx
import pytest
import static_decoding
import tiny_models
import torch
import transformers
from transformers import AutoModelForCausalLM, cache_utils, masking_utils, modeling_utils
from transformers.activations import ACT2FN
from transformers.models.cohere import modeling_cohere
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.glm import modeling_glm
from transformers.models.llama import modeling_llama
from transformers.models.opt import modeling_opt

from rocline.errors import ExportError
from rocline.export import markers, random_models
from rocline.export.markers import seams
from rocline.export.quiet import quiet


@pytest.fixture(autouse=True)
def restored():
    """Whatever a test planted, the trace leaves nothing of its own behind."""
    yield
    assert seams.IMPLEMENTATION not in modeling_utils.ALL_ATTENTION_FUNCTIONS
    assert seams.IMPLEMENTATION not in masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    assert cache_utils.DynamicLayer.update.__module__ == cache_utils.__name__


@pytest.fixture
def trace(tmp_path):
    """Makes and traces a tiny model: (model, marked graph)."""

    def run(kind="llama", **config):
        folder = tmp_path / f"{kind} source"
        if config:
            random_models.build({**SIZES, "model_type": kind, **config}, 0, folder)
        else:
            tiny_models.save(kind, folder)
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(folder).eval()
        return model, markers.trace(model, tmp_path, opset=18)

    return run


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}


def assert_pytorchs_numbers(model, graph):
    evaluator = marker_operators.evaluator(graph.path)
    caches = {
        value.name: (value.type.tensor_type.shape.dim[1].dim_value, value.type.tensor_type.shape.dim[3].dim_value)
        for value in onnx.load(graph.path).graph.input
        if value.name.startswith("past_key_values")
    }

    def run(feeds):
        return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))

    assert max(static_decoding.deviation(model, run, caches).values()) <= 2e-5


def test_a_norm_with_another_formula_stays_as_it_is(trace, monkeypatch):
    def forward(self, x):
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", forward)
    model, graph = trace()
    assert "RmsNorm" not in graph.marked
    assert graph.unmarked == ("LlamaRMSNorm: another norm formula",) * 5
    assert graph.marked["Attention"] == 2
    assert_pytorchs_numbers(model, graph)


def test_an_activation_with_another_formula_stays_as_it_is(trace, monkeypatch):
    monkeypatch.setattr(type(ACT2FN["silu"]), "forward", lambda self, x: x * torch.sigmoid(1.1 * x))
    model, graph = trace()
    assert "Activation" not in graph.marked
    assert_pytorchs_numbers(model, graph)


def test_rotary_pairs_neighbours_whatever_the_function_is_called(trace, monkeypatch):
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_cohere.apply_rotary_pos_emb)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", modeling_cohere.CohereRotaryEmbedding.forward)
    model, graph = trace()
    kinds = [node.attribute[0].i for node in onnx.load(graph.path).graph.node if node.op_type == "Rotary"]
    assert kinds == [1, 1, 1, 1]
    assert_pytorchs_numbers(model, graph)


HALVES = modeling_llama.apply_rotary_pos_emb


def rotates_backwards(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    return HALVES(q, k, cos, -sin)


def test_another_rotation_stays_as_it_is(trace, monkeypatch):
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rotates_backwards)
    model, graph = trace()
    assert not {"Rotary", "RotaryTable"} & set(graph.marked)
    assert graph.unmarked == (f"{__name__}.rotates_backwards: another rotary formula",)
    assert_pytorchs_numbers(model, graph)


def test_neighbours_are_paired_by_a_table_of_halves_too(trace, monkeypatch):
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_glm.apply_rotary_pos_emb)
    model, graph = trace()
    kinds = [node.attribute[0].i for node in onnx.load(graph.path).graph.node if node.op_type == "Rotary"]
    assert kinds == [1, 1, 1, 1]
    assert_pytorchs_numbers(model, graph)


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
    assert_pytorchs_numbers(model, graph)


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


def planted_masks():
    create = masking_utils.create_causal_mask

    def prefix(**given):
        return create(**given, or_mask_function=lambda batch, head, query, key: key < 3)

    def everything(**given):
        return create(**given, or_mask_function=lambda batch, head, query, key: key >= 0)

    def sparse(**given):
        return create(**given, and_mask_function=lambda batch, head, query, key: (query - key) % 2 == 0)

    def chunked(config, **given):
        config.attention_chunk_size = 8
        return masking_utils.create_chunked_causal_mask(config, **given)

    def none(**given):
        return None

    def tensor(*, input_embeds, **given):
        size = input_embeds.shape[1]
        return torch.zeros(1, 1, size, size)

    shape = "neither causal nor a causal sliding window"
    own = "builds its own attention mask"
    return [(prefix, shape), (everything, shape), (sparse, shape), (chunked, shape), (none, own), (tensor, own)]


@pytest.mark.parametrize(("mask", "reason"), planted_masks(), ids=lambda value: getattr(value, "__name__", ""))
def test_another_mask_is_refused(trace, monkeypatch, mask, reason):
    monkeypatch.setattr(modeling_llama, "create_causal_mask", mask)
    with pytest.raises(markers.Refused, match=reason):
        trace()


def test_a_mask_that_no_longer_says_what_it_hides_is_refused(trace, monkeypatch):
    create = masking_utils.create_causal_mask

    def silent(config, **given):
        registry = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
        if config._attn_implementation != seams.IMPLEMENTATION:
            return create(config, **given)
        return registry[seams.IMPLEMENTATION](batch_size=1, kv_length=5)

    monkeypatch.setattr(modeling_llama, "create_causal_mask", silent)
    with pytest.raises(markers.Refused, match="no mask_function"):
        trace()


def test_an_own_mask_that_is_not_causal_is_refused(trace, monkeypatch):
    make = modeling_opt.OPTDecoder._update_causal_mask

    def whole(self, *given, **more):
        return torch.zeros_like(make(self, *given, **more))

    monkeypatch.setattr(modeling_opt.OPTDecoder, "_update_causal_mask", whole)
    with pytest.raises(markers.Refused, match="OPTDecoder: makes its own attention mask, not shown to be causal"):
        trace("opt")


class Evicting(cache_utils.DynamicLayer):
    """A layer that forgets."""

    def update(self, key_states, value_states, cache_kwargs=None):
        keys, values = super().update(key_states, value_states, cache_kwargs)
        self.keys, self.values = keys[:, :, -2:], values[:, :, -2:]
        return keys, values


def test_a_cache_layer_of_another_class_is_refused(trace, monkeypatch):
    class OtherCache(cache_utils.DynamicCache):
        def __init__(self, *given, **more):
            super().__init__(*given, **more)
            self.layers, self.layer_class_to_replicate = [], Evicting

    monkeypatch.setattr(modeling_llama, "DynamicCache", OtherCache)
    with pytest.raises(markers.Refused, match="a layer of class Evicting, expected DynamicLayer"):
        trace()


def test_a_cache_layer_of_another_class_in_the_trace_is_refused(trace, monkeypatch):
    def convert(past):
        cache = cache_utils.DynamicCache()
        cache.layers = [Evicting() for _ in past]
        for index, (key, value) in enumerate(past):
            cache.update(key, value, index)
        return cache

    monkeypatch.setattr(cache_utils.DynamicCache, "from_legacy_cache", staticmethod(convert))
    with pytest.raises(markers.Refused, match="Evicting"):
        trace()


def test_another_kind_of_cache_is_refused(trace, monkeypatch):
    class Whole:
        layers = None

        def __init__(self, config):
            self.inner = cache_utils.DynamicCache(config=config)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(modeling_llama, "DynamicCache", Whole)
    with pytest.raises(markers.Refused, match="a layer of class Whole"):
        trace()


def twice(attend, module, q, k, v, mask, **rest):
    first, weights = attend(module, q, k, v, mask, **rest)
    second, _ = attend(module, q.flip(1), k, v, mask, **rest)
    return first + second, weights


def on_other_keys(attend, module, q, k, v, mask, **rest):
    return attend(module, q, k * 0.5, v, mask, **rest)


def with_swapped_cache(attend, module, q, k, v, mask, **rest):
    return attend(module, q, v, k, mask, **rest)


def with_sinks(attend, module, q, k, v, mask, **rest):
    if attend is not modeling_llama.eager_attention_forward:
        rest["s_aux"] = torch.zeros(4)
    return attend(module, q, k, v, mask, **rest)


def with_a_window_of_its_own(attend, module, q, k, v, mask, **rest):
    return attend(module, q, k, v, mask, **{**rest, "sliding_window": 9})


def with_a_head_mask(attend, module, q, k, v, mask, **rest):
    return attend(module, q, k, v, mask, **rest, head_mask=torch.ones(4))


def wide_values(attend, module, q, k, v, mask, **rest):
    output, weights = attend(module, q, k, torch.cat((v, v), -1), mask, **rest)
    return output[..., : v.shape[-1]], weights


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (twice, "4 cache appends and 4 attentions went through the markers, expected 4 and 2"),
        (on_other_keys, r"present\.0\.key: is read by Mul, expected one attention"),
        (with_swapped_cache, r"present\.0\.key: is read by Attention, expected one attention"),
        (with_sinks, "passes 's_aux' to its attention"),
        (with_a_window_of_its_own, "names a window of 9 tokens, its mask one of -1"),
        (with_a_head_mask, "passes 'head_mask' to its attention"),
        (wide_values, "heads of q, k and v differ in size"),
    ],
)
def test_another_use_of_attention_is_refused(trace, monkeypatch, change, reason):
    original = modeling_llama.LlamaAttention.forward
    registry = modeling_utils.ALL_ATTENTION_FUNCTIONS
    eager = modeling_llama.eager_attention_forward

    class Registry:
        def __getitem__(self, name):
            return lambda *given, **more: change(registry[name], *given, **more)

    def forward(self, *given, **more):
        if self.config._attn_implementation != "eager":
            return original(self, *given, **more)
        # Planted for this call alone: the probe asks the real one.
        modeling_llama.eager_attention_forward = lambda *given, **more: change(eager, *given, **more)
        try:
            return original(self, *given, **more)
        finally:
            modeling_llama.eager_attention_forward = eager

    monkeypatch.setattr(modeling_llama, "ALL_ATTENTION_FUNCTIONS", Registry())
    forward.__module__ = modeling_llama.__name__
    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", forward)
    with pytest.raises(markers.Refused, match=reason):
        trace()


def test_keys_shared_between_layers_are_refused(trace, monkeypatch):
    update = cache_utils.DynamicCache.update

    def shared(self, keys, values, layer, *more):
        found = update(self, keys, values, layer, *more)
        return found if layer == 0 else (self.layers[0].keys, self.layers[0].values)

    monkeypatch.setattr(cache_utils.DynamicCache, "update", shared)
    with pytest.raises(markers.Refused, match=r"present\.0\.key: is read by Attention, Attention"):
        trace()


GEMMA_EAGER = modeling_gemma2.eager_attention_forward


def without_the_cap(module, q, k, v, mask, softcap, **rest):
    return GEMMA_EAGER(module, q, k, v, mask, **rest)


def at_another_temperature(module, q, k, v, mask, **rest):
    return GEMMA_EAGER(module, q * 1.5, k, v, mask, **rest)


def with_another_signature(module, q, k, v, mask, sliding_window, **rest):
    return GEMMA_EAGER(module, q, k, v, mask, **rest)


@pytest.mark.parametrize(
    ("eager", "reason"),
    [
        (without_the_cap, "gives other numbers"),
        (at_another_temperature, "gives other numbers"),
        (with_another_signature, "cannot be asked"),
    ],
)
def test_an_eager_attention_with_another_formula_is_refused(trace, monkeypatch, eager, reason):
    monkeypatch.setattr(modeling_gemma2, "eager_attention_forward", eager)
    with pytest.raises(markers.Refused, match=f"Gemma2Attention: its eager attention {reason}"):
        trace("gemma2")


def test_a_scale_that_only_eager_attention_knows_is_refused(trace):
    with pytest.raises(markers.Refused, match="GPT2Attention: its eager attention gives other numbers"):
        trace("gpt2", architectures=["GPT2LMHeadModel"], scale_attn_by_inverse_layer_idx=True)


def test_a_use_of_the_caches_length_is_refused(trace, monkeypatch):
    forward = modeling_llama.LlamaMLP.forward

    def counted(self, x):
        # As if the length so far changed the result: right in the rehearsal, wrong with any other capacity.
        return forward(self, x) + 0 * SEEN[-1]

    update = cache_utils.DynamicCache.update

    def seen(self, keys, values, layer, *more):
        SEEN.append(self.get_seq_length())
        return update(self, keys, values, layer, *more)

    SEEN = [0]
    monkeypatch.setattr(cache_utils.DynamicCache, "update", seen)
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", counted)
    with pytest.raises(markers.Refused, match=r"past_key_values\.0\.key: is read by Shape"):
        trace()


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


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        ("stablelm", {"architectures": ["StableLmForCausalLM"]}, "an attention works on the mask itself"),
        ("gptj", {"architectures": ["GPTJForCausalLM"], "rotary_dim": 4}, "an attention works on the mask itself"),
        ("falcon", {"architectures": ["FalconForCausalLM"]}, "makes its own attention mask, not shown to be causal"),
        ("bloom", {"architectures": ["BloomForCausalLM"], "max_position_embeddings": None}, "so no capacity is known"),
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
