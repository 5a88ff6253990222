import contextlib

import marker_operators
import numpy as np
import onnx
import pytest
import tiny_models
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from rocline.custom_ops.rewriting import MARKERS
from rocline.export import markers
from rocline.export.markers import functions
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
    found = marker_operators.deviation(model, graph.path)
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
