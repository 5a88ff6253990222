import sys

import numpy as np
import pytest
import real_models
import small_models
from onnx import helper
from sentence_transformers import SentenceTransformer

from rocline import Embedder, Generator, Session
from rocline.errors import InputError, ModelError, RoclineError

SENTENCES = [
    "A kernel adds two vectors on the GPU.",
    "",
    "The graphics card sums a pair of arrays.",
    "My grandmother bakes bread on Sundays, and the whole street smells of it until noon.",
    "  padded with white space \n",
    "Ünïcödé, 漢字 and 🙂 in one line",
    "It was the best of times, it was the worst of times. " * 60,
    "word",
]


@pytest.fixture(scope="module")
def reference():
    return SentenceTransformer(str(real_models.minilm_folder()), device="cpu")


@pytest.fixture(scope="module")
def embedder(minilm):
    with Embedder(minilm) as embedder:
        yield embedder


def test_vectors_are_those_of_sentence_transformers(embedder, reference):
    vectors = embedder.embed(SENTENCES)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, reference.encode(SENTENCES), atol=1e-5, rtol=0)


def test_many_texts_of_mixed_lengths_keep_their_order(minilm, reference):
    texts = [f"{number} " * (1 + number * 7 % 40) for number in range(50)]
    with Embedder(minilm, batch_tokens=100) as embedder:
        np.testing.assert_allclose(embedder.embed(texts), reference.encode(texts), atol=1e-5, rtol=0)


def test_batches_hold_the_token_budget_and_every_text_once(embedder):
    lengths = [300, 1, 7, 4096, 5000, 64, 64, 2]
    batches = list(embedder._batches(lengths))
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) == 1 or max(lengths[row] for row in rows) * len(rows) <= 4096
    assert len(batches) == 3


def test_no_texts_give_no_vectors(embedder):
    vectors = embedder.embed([])
    assert (vectors.shape, vectors.dtype) == ((0, 384), np.float32)


def test_any_strings_will_do(embedder):
    expected = embedder.embed(["a", "b"])
    np.testing.assert_array_equal(embedder.embed(text for text in "ab"), expected)
    np.testing.assert_array_equal(embedder.embed(np.array(["a", "b"])), expected)


def test_half_a_character_is_refused_by_its_place(embedder):
    with pytest.raises(InputError, match=r"^text: '\\ud83d' at character 1 is half a character, expected valid"):
        embedder.embed(["fine", "a\ud83d"])


@pytest.mark.parametrize("texts", ["one string", ["fine", 3], [None]])
def test_what_is_no_list_of_strings_is_refused(embedder, texts):
    with pytest.raises(InputError, match=r"^texts"):
        embedder.embed(texts)


def test_an_unknown_prompt_is_refused(embedder):
    with pytest.raises(InputError, match="prompt_name is 'query', expected one that the model names: none"):
        embedder.embed(["x"], prompt_name="query")


def test_a_models_own_prompt_goes_in_front(minilm, reference, tmp_path):
    folder = tmp_path / "prompted"
    folder.mkdir()
    for path in minilm.iterdir():
        (folder / path.name).symlink_to(path)
    config = folder / "config_sentence_transformers.json"
    config.unlink(missing_ok=True)
    config.write_text('{"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "passage"}')
    with Embedder(folder) as embedder:
        np.testing.assert_allclose(embedder.embed(["a"]), reference.encode(["passage: a"]), atol=1e-5, rtol=0)
        vectors = embedder.embed(["a"], prompt_name="query")
        np.testing.assert_allclose(vectors, reference.encode(["query: a"]), atol=1e-5, rtol=0)


def test_closing_twice_is_harmless_and_using_it_afterwards_an_error(minilm):
    embedder = Embedder(minilm)
    embedder.close()
    embedder.close()
    with pytest.raises(RoclineError, match="closed"):
        embedder.embed(["x"])


def with_tokenizer(folder, proto):
    """Puts a model beside MiniLM's tokenizer, without its sentence-transformers files."""
    small_models.save(proto, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (folder / name).symlink_to(real_models.minilm_folder() / name)
    return folder


def test_a_pooled_output_is_taken_as_it_is(tmp_path):
    ids = ("input_ids", small_models.INT64, ["batch", "sequence"])
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["x"], to=small_models.FLOAT),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0, axes=[1]),
        helper.make_node("Unsqueeze", ["sum"], ["sentence_embedding"], axes=[1]),
    ]
    output = ("sentence_embedding", small_models.FLOAT, ["batch", "one"])
    folder = with_tokenizer(tmp_path, small_models.model(nodes, [ids], [output], opsets={"": 11}))
    with Embedder(folder) as embedder:
        assert embedder.hidden == 1
        # [CLS] 101, hello 7592, [SEP] 102
        np.testing.assert_array_equal(embedder.embed(["hello", ""]), [[7795], [203]])


def test_a_model_without_token_vectors_is_refused(tmp_path):
    folder = with_tokenizer(tmp_path, small_models.two_inputs())
    with pytest.raises(ModelError, match="outputs y, expected one of sentence_embedding, last_hidden_state"):
        Embedder(folder)


def test_a_model_that_needs_other_inputs_is_refused(tmp_path):
    folder = with_tokenizer(tmp_path, small_models.matmul())
    with pytest.raises(ModelError, match="inputs x are unknown, expected input_ids"):
        Embedder(folder)


@pytest.mark.parametrize("kind", [Embedder, Generator])
def test_what_cannot_be_made_leaves_no_session_open(kind, tmp_path, monkeypatch):
    path = small_models.save(small_models.matmul(), tmp_path)
    opened = []

    class Watched(Session):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            opened.append(self)

    monkeypatch.setattr(sys.modules[kind.__module__], "Session", Watched)
    with pytest.raises(RoclineError) as kept:
        kind(path)
    (session,) = opened
    with pytest.raises(RoclineError, match="the session is closed"):
        _ = session.ort
    assert kept.value.__traceback__ is not None, "nothing was merely dropped"
