"""Other masks, caches and attentions than the markers stand for: each is refused with its reason."""

import pytest
import torch
from transformers import cache_utils, masking_utils, modeling_utils
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.llama import modeling_llama
from transformers.models.opt import modeling_opt

from rocline.export import markers
from rocline.export.markers import seams

pytestmark = pytest.mark.usefixtures("restored")


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
