"""The numeric probes: what is told from what by its numbers alone."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as rotate_interleaved
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as rotate_glm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_halves

from rocline.export import markers
from rocline.export.markers import probes


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: LlamaRMSNorm(24, eps=1e-5), "rms"),
        (lambda: GemmaRMSNorm(24, eps=1e-6), "rms"),
        (lambda: nn.RMSNorm(24, eps=1e-6), "rms"),
        (lambda: transformers.models.cohere.modeling_cohere.CohereLayerNorm(24, eps=1e-5), "layer"),
    ],
)
def test_a_norm_is_found_by_its_numbers(make, kind):
    torch.manual_seed(0)
    module = make()
    nn.init.normal_(module.weight)
    found = probes.norm(module)
    assert found.kind == kind
    x = torch.randn(2, 5, 24) * 3 + 1
    torch.testing.assert_close(found(x), module(x))


class Pooled(LlamaRMSNorm):
    """Divides by the mean magnitude instead."""

    def forward(self, x):
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.variance_epsilon)


class EpsilonOutside(LlamaRMSNorm):
    """Adds epsilon to the root instead of under it: seen with small values only."""

    def forward(self, x):
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon)


class Clipped(LlamaRMSNorm):
    """Clips large values: seen with large ones only."""

    def forward(self, x):
        return super().forward(x.clamp(-100, 100))


class Gated(LlamaRMSNorm):
    """Wants a gate as well."""

    def forward(self, x, gate=None):
        return super().forward(x) * (1 if gate is None else gate)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pooled(24),
        lambda: EpsilonOutside(24, eps=1e-3),
        lambda: Clipped(24),
        lambda: Gated(24),
        lambda: nn.LayerNorm(24),
        lambda: nn.Linear(24, 24),
        lambda: nn.BatchNorm1d(24),
    ],
)
def test_another_norm_is_left_alone(make):
    module = make().eval()
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=1.0)
    assert probes.norm(module) is None


def test_activations_are_found_by_their_numbers():
    found = {
        name: probes.activation(ACT2FN[name]) for name in ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "swish")
    }
    assert found == {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
    }
    for name in ("relu", "quick_gelu", "relu2", "tanh", "mish"):
        assert probes.activation(ACT2FN[name]) is None


def test_a_product_is_told_from_its_transpose():
    torch.manual_seed(0)
    conv1d, bare = transformers.pytorch_utils.Conv1D(24, 24), nn.Linear(24, 24, bias=False)
    nn.init.normal_(conv1d.bias)
    assert probes.product(conv1d)
    assert probes.product(transformers.pytorch_utils.Conv1D(24, 16))
    for other in (nn.Linear(24, 24), nn.Linear(24, 16), bare, nn.Bilinear(24, 24, 24), nn.Conv1d(24, 24, 1)):
        assert not probes.product(other)


def test_rotary_functions_are_told_apart():
    sizes = {"heads": 4, "kv_heads": 2, "head_dim": 8, "width": 8}
    halves = probes.Rotation(interleaved=False)
    assert probes.rotary_kind(rotate_halves, **sizes) == halves
    assert probes.rotary_kind(rotate_interleaved, **sizes) == probes.Rotation(interleaved=True)
    assert probes.rotary_kind(rotate_glm, **sizes) == probes.Rotation(interleaved=True, from_halves=True)
    assert probes.rotary_kind(lambda q, k, cos, sin: rotate_halves(q, k, cos, -sin), **sizes) is None
    # Partial, by functions that do and do not know of it.
    part = sizes | {"head_dim": 12}
    assert probes.rotary_kind(transformers.models.phi3.modeling_phi3.apply_rotary_pos_emb, **part) == halves
    assert probes.rotary_kind(rotate_halves, **part) is None


def rotary_embedding(**scaling):
    config = transformers.LlamaConfig(
        hidden_size=32, num_attention_heads=4, max_position_embeddings=64, rope_scaling=scaling or None
    )
    return LlamaRotaryEmbedding(config)


@pytest.mark.parametrize(
    "scaling",
    [
        {},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
)
def test_a_rotary_table_is_what_the_module_gives(scaling):
    module = rotary_embedding(**scaling)
    cos, sin = probes.rotary_table(module, 64)
    assert cos.shape == sin.shape == (64, 8)
    expected = module(torch.zeros(1), torch.tensor([[5, 63, 0]]))
    torch.testing.assert_close((cos[[5, 63, 0]][None], sin[[5, 63, 0]][None]), expected)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "dynamic", "factor": 4.0},
        {
            "rope_type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
)
def test_a_rotary_table_that_depends_on_the_length_is_refused(scaling):
    module = rotary_embedding(**scaling)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with pytest.raises(markers.Refused, match="depends on the sequence's length"):
        probes.rotary_table(module, 64)
    torch.testing.assert_close(dict(module.named_buffers()), before)


def mask_functions():
    from transformers import masking_utils

    causal = masking_utils.causal_mask_function
    return SimpleNamespace(
        causal=causal,
        window=masking_utils.sliding_window_causal_mask_function,
        chunked=lambda size: masking_utils.chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.long)),
        prefix=lambda size: masking_utils.or_masks(causal, lambda batch, head, q, k: k < size),
        full=lambda batch, head, q, k: (q >= 0) & (k >= 0),
        by_head=lambda batch, head, q, k: (k <= q) & ((head == 0) | (k > q - 5)),
        hole=lambda batch, head, q, k: (k <= q) & (k != 37),
    )


@pytest.mark.parametrize("positions", [64, 5000])
def test_a_masks_window_is_found(positions):
    masks = mask_functions()

    def window(mask):
        return probes.mask_window(mask, positions=positions, heads=4)

    assert window(masks.causal) == -1
    assert [window(masks.window(size)) for size in (1, 2, 17, positions - 1)] == [1, 2, 17, positions - 1]
    assert window(masks.window(positions)) == -1, "a window that holds every position hides nothing"
    for other in (masks.chunked(16), masks.prefix(4), masks.full, masks.by_head, masks.hole):
        with pytest.raises(markers.Refused, match="neither causal nor a causal sliding window"):
            window(other)
