"""Exported decoders: what each architecture is fused to, what an export does where it cannot be, SmolLM2's shape."""

from collections import Counter
from types import SimpleNamespace

import onnx
import pytest
import tiny_models

from rocline.custom_ops.rotary_cache import rule as rotary_rule
from rocline.custom_ops.skip_rms_norm import rule as norm_rule
from rocline.errors import ParityError
from rocline.export import export_model, markers
from rocline.runtime.manifest import CustomOps, Manifest

LAYERS = 2
_CACHE = {"RotaryCache": LAYERS, "CachedAttention": LAYERS}
_LLAMA = {**_CACHE, "SkipRmsNorm": 2 * LAYERS + 1, "SwiGlu": LAYERS, "MatMul": 4 * LAYERS}
# Operators of rocline's and of ONNX Runtime's own, and MatMul: more than 4 a layer are projections that stayed apart.
FUSED = {
    **dict.fromkeys(
        ("llama", "llama3", "qwen2", "qwen3", "mistral", "gemma", "phi3", "granite", "smollm3"),
        _LLAMA,
    ),
    "gemma2": {**_LLAMA, "SkipRmsNorm": 4 * LAYERS + 1},
    # Normalises whole queries and keys behind their projections.
    "olmo2": {**_LLAMA, "SkipRmsNorm": 4 * LAYERS + 1, "MatMul": 6 * LAYERS},
    "cohere": {**_CACHE, "SwiGlu": LAYERS, "SkipLayerNormalization": LAYERS, "MatMul": 4 * LAYERS},
    "phi": {**_CACHE, "FastGelu": LAYERS, "SkipLayerNormalization": LAYERS, "MatMul": 4 * LAYERS},
    "gpt_neox": {**_CACHE, "BiasGelu": LAYERS, "SkipLayerNormalization": LAYERS, "MatMul": 4 * LAYERS},
    "gpt2": {**_CACHE, "FastGelu": LAYERS, "SkipLayerNormalization": 2 * LAYERS + 1, "MatMul": 4 * LAYERS},
    # Its MLP is Gemm, on the tokens of all rows in one line.
    "opt": {**_CACHE, "SkipLayerNormalization": 1, "MatMul": 2 * LAYERS},
}
_UNPACKED = {"olmo2": {"what it reads are not all projections by a constant weight": LAYERS}}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Makes (source, model folder, manifest) of an architecture, once."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            tiny_models.save(kind, folder / "source")
            manifest = export_model(folder / "source", folder / "out")
            made[kind] = SimpleNamespace(source=folder / "source", out=folder / "out", manifest=manifest)
        return made[kind]

    return get


def operators(folder):
    return Counter(node.op_type for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node)


def test_every_decoder_is_here():
    assert set(FUSED) == set(tiny_models.DECODERS)


@pytest.mark.parametrize("kind", FUSED)
def test_fused(exported, kind):
    made = exported(kind)
    nodes = onnx.load(made.out / "model.onnx").graph.node
    found = Counter(node.op_type for node in nodes if node.domain or node.op_type == "MatMul")
    assert found == FUSED[kind]
    assert made.manifest.custom_ops == CustomOps("rocline", 1)
    fusion = made.manifest.fusion["model.onnx"]
    assert fusion.nodes_after == len(nodes) < fusion.nodes_before / 2
    rows = {row.rule: row for row in fusion.rows}
    assert rows["cached attention"].count == LAYERS
    assert rows["packed q, k, v"].refused == _UNPACKED.get(kind, {})


def test_twice_the_same_bytes(exported, tmp_path):
    made = exported("qwen3")
    export_model(made.source, tmp_path / "again")
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (made.out / "model.onnx").read_bytes()


def test_growing_is_optimums_graph_as_it_is(exported, tmp_path):
    manifest = export_model(exported("llama").source, tmp_path / "out", cache="growing")
    assert (manifest.cache, manifest.custom_ops, manifest.fusion["model.onnx"].rows) == ("growing", None, ())
    names = [spec.name for spec in manifest.models["model.onnx"].inputs]
    assert names[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert {node.domain for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node} == {""}


@pytest.mark.parametrize("target", ["migraphx", "portable"])
def test_a_target_without_our_operators_gets_the_growing_cache(exported, tmp_path, target):
    manifest = export_model(exported("llama").source, tmp_path / "out", target=target)
    assert (manifest.cache, manifest.custom_ops) == ("growing", None)
    (note,) = [note for note in manifest.notes if "cache" in note]
    assert note.startswith("cache 'growing' instead of 'static': ")
    assert note.endswith("runs no operators of rocline's own")
    (row,) = manifest.fusion["model.onnx"].rows
    assert (row.rule, row.count, list(row.refused.values())) == ("static cache", 0, [1])


def test_a_refused_trace_falls_back_and_says_why(exported, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise markers.Refused("planted")

    monkeypatch.setattr(markers, "trace", refuse)
    manifest = export_model(exported("llama").source, tmp_path / "out", sampling_head=True)
    assert manifest.cache == "growing"
    assert "cache 'growing' instead of 'static', and no sampling head: planted" in manifest.notes


def test_markers_that_no_rule_lowers_are_refused(exported, tmp_path, monkeypatch):
    def unfit(*_):
        raise rotary_rule._Unfit("planted")

    monkeypatch.setattr(rotary_rule, "_common_rotation", unfit)
    manifest = export_model(exported("llama").source, tmp_path / "out")
    assert manifest.cache == "growing"
    (note,) = [note for note in manifest.notes if "cache" in note]
    assert note == (
        "cache 'growing' instead of 'static': no operator stands for the markers Attention (2), CacheAppend (4), "
        "Rotary (4), RotaryTable (1): planted; its keys and values are not RotaryCache's"
    )


def test_a_wrong_lowering_ends_the_export(exported, tmp_path, monkeypatch):
    insert = norm_rule.insert

    def wrong(before, op_type, inputs, attributes, **more):
        return insert(before, op_type, inputs, {"epsilon": 0.5}, **more)

    monkeypatch.setattr(norm_rule, "insert", wrong)
    with pytest.raises(ParityError, match=r"first diverging layer: model\.layers\.0\.input_layernorm"):
        export_model(exported("llama").source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sampling_head_is_an_output_beside_the_logits(exported, tmp_path):
    manifest = export_model(exported("llama").source, tmp_path / "out", sampling_head=True)
    model = manifest.models["model.onnx"]
    assert {spec.name: (spec.dtype, spec.shape) for spec in model.outputs}["next_token"] == ("int64", ("batch_size",))
    parameters = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"]
    given = [spec.name for spec in model.inputs if not spec.name.startswith("past_key_values")]
    assert given == ["input_ids", "position_ids", *parameters]


# What four bytes a parameter of SmolLM2-135M take, its embedding counted once.
SMOLLM2_BYTES = 4 * 134_515_008


def test_smollm2_is_few_large_nodes(smollm2):
    found = operators(smollm2)
    assert found.total() < 300
    fused = ("CachedAttention", "RotaryCache", "SwiGlu", "SkipRmsNorm", "MatMul", "Gemm")
    assert {name: found[name] for name in fused} == {
        "CachedAttention": 30,
        "RotaryCache": 30,
        "SwiGlu": 30,
        "SkipRmsNorm": 61,
        "MatMul": 120,
        "Gemm": 1,
    }
    assert (smollm2 / "model.onnx").stat().st_size < 1.02 * SMOLLM2_BYTES
    manifest = Manifest.read(smollm2)
    assert manifest.cache == "static"
    assert list(manifest.fusion["model.onnx"].placement) == ["ROCMExecutionProvider"]
