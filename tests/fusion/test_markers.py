import contextlib
from types import SimpleNamespace

import marker_operators
import numpy as np
import onnx
import pytest
import static_decoding
import tiny_models
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as rotate_interleaved
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as rotate_glm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_halves

from rocline.custom_ops.rewriting import MARKERS
from rocline.export import markers
from rocline.export.markers import functions, probes
from rocline.export.quiet import quiet

LAYERS = 2
_DECODER = {"CacheAppend": 2 * LAYERS, "Attention": LAYERS, "LastToken": 1}
_ROTARY = {**_DECODER, "RotaryTable": 1, "Rotary": 2 * LAYERS, "Activation": LAYERS}
_RMS = {**_ROTARY, "RmsNorm": 2 * LAYERS + 1}
_FOUR_NORMS = {**_ROTARY, "RmsNorm": 4 * LAYERS + 1}
COUNTS = {
    "llama": _RMS,
    "qwen2": _RMS,
    "mistral": _RMS,
    "gemma": _RMS,
    "llama3": _RMS,
    "phi3": _RMS,
    "granite": _RMS,
    "qwen3": _FOUR_NORMS,
    "gemma2": _FOUR_NORMS,
    "olmo2": _FOUR_NORMS,
    "smollm3": {**_RMS, "Rotary": 2},
    "phi": _ROTARY,
    "cohere": _ROTARY,
    "gpt_neox": _ROTARY,
    "gpt2": {**_DECODER, "Activation": LAYERS},
    "opt": _DECODER,
}


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Makes (model, marked graph) of one of `tiny_models.DECODERS`, once."""
    made = {}

    def trace(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            tiny_models.save(kind, folder / "source")
            with quiet():
                model = AutoModelForCausalLM.from_pretrained(folder / "source").eval()
            made[kind] = model, markers.trace(model, folder, opset=18)
        return made[kind]

    return trace


def attribute(node, name):
    (value,) = (onnx.helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name)
    return value


def nodes(graph, op_type):
    return [node for node in onnx.load(graph.path).graph.node if node.op_type == op_type and node.domain == MARKERS]


@pytest.mark.parametrize("kind", tiny_models.DECODERS)
def test_every_part_of_every_architecture_is_marked(traced, kind):
    _, graph = traced(kind)
    assert dict(graph.marked) == COUNTS[kind]
    assert graph.unmarked == ()
    assert graph.capacity == 256


@pytest.mark.parametrize("kind", tiny_models.DECODERS)
def test_a_marked_graph_gives_pytorchs_numbers(traced, kind):
    model, graph = traced(kind)
    evaluator = marker_operators.evaluator(graph.path)
    caches = {
        value.name: (value.type.tensor_type.shape.dim[1].dim_value, value.type.tensor_type.shape.dim[3].dim_value)
        for value in onnx.load(graph.path).graph.input
        if value.name.startswith("past_key_values")
    }

    def run(feeds):
        return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))

    found = static_decoding.deviation(model, run, caches)
    assert sorted(found) == ["chunked prefill", "decode after chunked prefill", "decode after prefill", "prefill"]
    assert max(found.values()) <= 2e-5, found


def test_the_graphs_interface(traced):
    _, graph = traced("llama")
    loaded = onnx.load(graph.path)

    def shapes(values):
        return {
            value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
            for value in values
        }

    row, buffer = ["batch_size", "sequence_length"], ["batch_size", 2, "capacity", 8]
    caches = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    assert shapes(loaded.graph.input) == {
        "input_ids": row,
        "position_ids": row,
        **{f"past_key_values.{cache}": buffer for cache in caches},
    }
    assert shapes(loaded.graph.output) == {
        "logits": ["batch_size", 1, 260],
        **{f"present.{cache}": buffer for cache in caches},
    }
    assert {opset.domain: opset.version for opset in loaded.opset_import} == {"": 18, MARKERS: 1}


def test_attributes_say_what_the_architecture_means(traced):
    windows = {kind: [attribute(node, "window") for node in nodes(traced(kind)[1], "Attention")] for kind in COUNTS}
    assert {kind: found for kind, found in windows.items() if found != [-1, -1]} == {
        "mistral": [6, 6],
        "phi3": [6, 6],
        "gemma2": [6, -1],
    }
    caps = {kind: {attribute(node, "soft_cap") for node in nodes(traced(kind)[1], "Attention")} for kind in COUNTS}
    assert {kind: found for kind, found in caps.items() if found != {0.0}} == {"gemma2": {2.0}}
    scales = {kind: {attribute(node, "scale") for node in nodes(traced(kind)[1], "Attention")} for kind in COUNTS}
    for kind, scale in {"granite": 0.2, "gemma2": 24**-0.5, "opt": 1.0, "llama": 8**-0.5}.items():
        assert scales[kind] == {np.float32(scale)}
    interleaved = {
        kind for kind in COUNTS if any(attribute(n, "interleaved") for n in nodes(traced(kind)[1], "Rotary"))
    }
    assert interleaved == {"cohere"}
    kinds = {
        kind: {attribute(node, "kind").decode() for node in nodes(traced(kind)[1], "Activation")} for kind in COUNTS
    }
    assert {kind for kind, found in kinds.items() if found == {"gelu_tanh"}} == {"gpt2", "gemma", "gemma2", "phi"}
    assert kinds["gpt_neox"] == {"gelu"}
    assert kinds["opt"] == set()


def test_a_tied_embedding_is_stored_once(traced):
    model, graph = traced("qwen2")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    shape = list(model.lm_head.weight.shape)
    loaded = onnx.load(graph.path).graph
    assert [list(tensor.dims) for tensor in loaded.initializer].count(shape) == 1
    assert shape[::-1] not in [list(tensor.dims) for tensor in loaded.initializer]


def test_scaled_rotary_tables_are_the_models(traced):
    model, graph = traced("llama3")
    (table,) = nodes(graph, "RotaryTable")
    constants = {tensor.name: tensor for tensor in onnx.load(graph.path).graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t for node in onnx.load(graph.path).graph.node if node.op_type == "Constant"
    }
    expected = model.model.rotary_emb(torch.zeros(1), torch.arange(256)[None])
    for name, rows in zip(table.input[1:], expected, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(constants[name]), rows[0].numpy())


def snapshot(model):
    """What a trace touches of a model and of transformers."""
    from transformers import cache_utils, masking_utils, modeling_utils
    from transformers.models.llama import modeling_llama

    return {
        "modules": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "forwards": {name: module.forward for name, module in model.named_modules()},
        "configs": [dict(vars(part.config)) for part in model.modules() if hasattr(part, "config")],
        "attention": dict(modeling_utils.ALL_ATTENTION_FUNCTIONS._global_mapping),
        "mask": dict(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping),
        "update": cache_utils.DynamicLayer.update,
        "rotate": modeling_llama.apply_rotary_pos_emb,
        "training": model.training,
    }


@pytest.mark.parametrize("fails", [False, True])
def test_everything_patched_is_restored(tmp_path, monkeypatch, fails):
    tiny_models.save("llama", tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "source").eval()
    before = snapshot(model)
    refused = contextlib.nullcontext()
    if fails:
        monkeypatch.setattr(functions.Attention, "symbolic", lambda *_: 1 / 0)
        refused = pytest.raises(markers.Refused)
    with refused:
        markers.trace(model, tmp_path, opset=18)
    assert snapshot(model) == before
    assert (tmp_path / "model.onnx").exists() != fails


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


class Small(nn.Module):
    """One call of a marker, as a module to export."""

    def __init__(self, marker, *attributes):
        super().__init__()
        self.marker, self.attributes = marker, attributes

    def forward(self, *tensors):
        return functions.mark(self.marker, *tensors, *self.attributes)


def tensors(*shapes):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


PADDED = torch.tensor([[3, 4, 5], [0, -1, -1]])


@pytest.mark.parametrize(
    ("marker", "inputs", "attributes", "expected"),
    [
        (functions.RmsNorm, tensors((2, 3, 8), (8,)), (1e-5,), {"epsilon": pytest.approx(1e-5)}),
        (functions.Rotary, tensors((2, 4, 3, 10), (2, 3, 6), (2, 3, 6)), (True,), {"interleaved": 1}),
        (functions.Rotary, tensors((2, 4, 3, 10), (2, 3, 6), (2, 3, 6)), (False,), {"interleaved": 0}),
        (functions.RotaryTable, (PADDED, *tensors((16, 6), (16, 6))), (), {}),
        (functions.CacheAppend, (*tensors((2, 2, 9, 8), (2, 2, 3, 8)), PADDED), (), {}),
        (
            functions.Attention,
            (*tensors((2, 4, 3, 8), (2, 2, 9, 8), (2, 2, 9, 8)), PADDED),
            (0.5, 2.0, 3, 4, 2, 8),
            {"scale": 0.5, "soft_cap": 2.0, "window": 3, "heads": 4, "kv_heads": 2, "head_dim": 8},
        ),
        (functions.Activation, tensors((2, 3, 8)), ("gelu_tanh",), {"kind": b"gelu_tanh"}),
        (functions.LastToken, (*tensors((2, 3, 8)), PADDED), (), {}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_markers_function_and_its_node_mean_the_same(tmp_path, marker, inputs, attributes, expected):
    module = Small(marker, *attributes)
    names = [f"input{index}" for index in range(len(inputs))]
    if marker is functions.Rotary:
        # A table holds each pair's angle twice.
        x, *halves = inputs
        repeat = (
            (lambda t: t[..., :3].repeat_interleave(2, -1)) if attributes[0] else lambda t: t[..., :3].repeat(1, 1, 2)
        )
        inputs = (x, *(repeat(half) for half in halves))
    with quiet():
        torch.onnx.export(module, inputs, tmp_path / "marker.onnx", input_names=names, dynamo=False, opset_version=18)
    (node,) = onnx.load(tmp_path / "marker.onnx").graph.node
    assert (node.domain, node.op_type) == (MARKERS, marker.__name__)
    assert {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute} == expected
    got = marker_operators.evaluator(tmp_path / "marker.onnx").run(
        None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    )
    wanted = module(*inputs)
    for array, tensor in zip(got, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        assert array.shape == tensor.shape
        np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-5, atol=1e-6)
