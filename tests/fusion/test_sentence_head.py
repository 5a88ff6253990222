"""The pooling head of sentence embedders: in the graph where it can be, and left to the Embedder where not."""

import json

import numpy as np
import onnx
import pytest
from graph_rules import model, operators, rewrite, run

from rocline import Embedder
from rocline.custom_ops.pool_normalize.rule import SentenceHead
from rocline.export import export_model, sentences
from rocline.runtime.pooling import normalized, pool

IN = "float[b, s, 8] x, int64[b, s] attention_mask"
OUT = "float[b, s, 8] last_hidden_state"
BODY = "{ last_hidden_state = Neg(x) }"


@pytest.mark.parametrize(("mode", "normalize"), [("mean", True), ("cls", False), ("last", True)])
def test_the_head_pools_what_the_graph_returns(mode, normalize):
    before = model(f"graph ({IN}) => ({OUT}) {BODY}")
    after, outcome = rewrite(before, SentenceHead(), pooling=(mode, normalize))
    assert (outcome.matched, outcome.refused) == (1, ())
    assert operators(after) == ["Neg", "PoolNormalize"]
    assert [value.name for value in after.graph.output] == ["last_hidden_state", "sentence_embedding"]
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = run(after, x=np.random.default_rng(0).standard_normal((2, 5, 8), np.float32), attention_mask=mask)
    expected = pool(found["last_hidden_state"], mask, (mode,))
    np.testing.assert_allclose(found["sentence_embedding"], normalized(expected) if normalize else expected, atol=1e-6)


@pytest.mark.parametrize(
    ("graph", "pooling", "reasons"),
    [
        (f"graph ({IN}) => ({OUT}) {BODY}", None, []),
        (
            "graph (float[b, s, 8] x) => (float[b, s, 8] y) { y = Neg(x) }",
            ("mean", True),
            ["the model has no output 'last_hidden_state' [batch, tokens, hidden]"],
        ),
        (
            f"graph (float[b, s, 8] x) => ({OUT}) {BODY}",
            ("mean", True),
            ["the model has no int64 input 'attention_mask'"],
        ),
    ],
)
def test_where_there_is_no_head(graph, pooling, reasons):
    after, outcome = rewrite(model(graph), SentenceHead(), pooling=pooling)
    assert (outcome.matched, [entry.reason for entry in outcome.refused]) == (0, reasons)
    assert operators(after) == ["Neg"]


@pytest.mark.parametrize(
    ("pooling", "modules", "padding", "chosen"),
    [
        ({"pooling_mode_mean_tokens": True}, ["Transformer", "Pooling", "Normalize"], "right", ("mean", True)),
        ({"pooling_mode_cls_token": True}, ["Transformer", "Pooling"], "right", ("cls", False)),
        ({"pooling_mode_cls_token": True}, ["Transformer", "Pooling"], "left", None),
        ({"pooling_mode_lasttoken": True}, ["Transformer", "Pooling"], "left", ("last", False)),
        ({"pooling_mode_max_tokens": True}, ["Transformer", "Pooling"], "right", None),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            ["Transformer", "Pooling"],
            "right",
            None,
        ),
        ({"pooling_mode_mean_tokens": True}, ["Transformer", "Pooling", "Dense"], "right", None),
    ],
)
def test_what_the_graph_can_do_of_a_models_pooling(pooling, modules, padding, chosen, tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    entries = [{"type": f"sentence_transformers.models.{name}", "path": f"1_{name}"} for name in modules]
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"padding_side": padding}))
    assert sentences.pooling(tmp_path) == chosen


def test_minilm_pools_in_its_graph_and_gives_the_same_vectors(minilm, tmp_path):
    """The same model without the head is pooled by the Embedder."""
    export_model("minilm", tmp_path / "portable", target="portable")
    graph = onnx.load(tmp_path / "portable" / "model.onnx").graph
    assert [output.name for output in graph.output] == ["last_hidden_state"]
    texts = ["one", "two or three words", "a sentence that is a good deal longer than the others"]
    with Embedder(minilm) as inside, Embedder(tmp_path / "portable") as outside:
        assert inside._output.name == "sentence_embedding"
        np.testing.assert_allclose(inside.embed(texts), outside.embed(texts), atol=1e-5)
