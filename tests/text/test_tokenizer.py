import random

import pytest
import real_models
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from rocline.errors import ModelError
from rocline.runtime.tokenizer import Detokenizer, TextTokenizer

TEXTS = [
    "Hello, world!",
    "",
    " leading and trailing ",
    "line\n\nbreaks\tand tabs",
    "naïve façade, 漢字かな, עברית, 👩‍👩‍👧‍👦 🇩🇪",
    "<|im_start|>user\nspecial<|im_end|>",
    "def f(x):\n    return x  # code",
]


def byte_level(folder):
    """A GPT-2-like tokenizer in which every token is one byte."""
    vocabulary = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return saved(tokenizer, folder)


def sentence_piece(folder):
    """A Llama-like tokenizer: words that carry their space as ▁, and single bytes for the rest."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁Hello", "▁world", "world", "!", "▁a", "b"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return saved(tokenizer, folder)


def saved(tokenizer, folder):
    tokenizer.save(str(folder / "tokenizer.json"))
    return TextTokenizer(folder)


def stream(tokenizer, prompt, tokens):
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(text, smollm2):
    for folder in (real_models.minilm_folder(), smollm2):
        assert TextTokenizer(folder).encode(text) == AutoTokenizer.from_pretrained(folder)(text).input_ids


def test_a_batch_is_cut_as_transformers_cuts_it():
    folder = real_models.minilm_folder()
    texts = ["word " * 40, "short", ""]
    expected = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, max_length=12).input_ids
    assert [encoding.ids for encoding in TextTokenizer(folder).encode_batch(texts, max_length=12)] == expected


def test_special_tokens_are_those_that_transformers_gives_to_chat_templates(smollm2):
    assert TextTokenizer(smollm2).special_tokens == AutoTokenizer.from_pretrained(smollm2).special_tokens_map


def test_a_character_of_several_tokens_comes_in_one_piece(tmp_path):
    tokenizer = byte_level(tmp_path)
    tokens = tokenizer.encode("aé漢🙂")
    assert stream(tokenizer, [], tokens) == ["a", "", "é", "", "", "漢", "", "", "", "🙂", ""]


def test_an_incomplete_character_at_the_end_becomes_a_replacement(tmp_path):
    tokenizer = byte_level(tmp_path)
    tokens = tokenizer.encode("a🙂")[:-1]
    assert stream(tokenizer, [], tokens) == ["a", "", "", "", "�"]


def test_random_bytes_stream_as_they_decode(tmp_path):
    tokenizer = byte_level(tmp_path)
    source = random.Random(7)
    for _ in range(50):
        tokens = [source.randrange(256) for _ in range(60)]
        pieces = stream(tokenizer, [], tokens)
        assert "".join(pieces) == tokenizer.decode(tokens)


def test_the_space_of_a_sentence_piece_depends_on_what_stands_before(tmp_path):
    tokenizer = sentence_piece(tmp_path)
    hello, world, bare, mark = (tokenizer._tokenizer.token_to_id(t) for t in ("▁Hello", "▁world", "world", "!"))
    assert stream(tokenizer, [], [hello, world, mark]) == ["Hello", " world", "!", ""]
    assert stream(tokenizer, [hello], [world, mark]) == [" world", "!", ""]
    assert stream(tokenizer, [hello], [bare]) == ["world", ""]


def test_sentence_piece_bytes_are_held_until_the_character_is_whole(tmp_path):
    tokenizer = sentence_piece(tmp_path)
    hello = tokenizer._tokenizer.token_to_id("▁Hello")
    smile = [1 + byte for byte in "🙂".encode()]
    assert stream(tokenizer, [hello], [*smile, hello]) == ["", "", "", "🙂", " Hello", ""]


def test_real_text_streams_unchanged(smollm2):
    tokenizer = TextTokenizer(smollm2)
    for text in TEXTS:
        prompt = tokenizer.encode("Prompt: ")
        tokens = tokenizer.encode(text)
        assert "".join(stream(tokenizer, prompt, tokens)) == tokenizer.decode(tokens)


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        TextTokenizer(tmp_path)


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": 3')
    with pytest.raises(ModelError, match=r"tokenizer\.json: not readable as a tokenizer"):
        TextTokenizer(tmp_path)
