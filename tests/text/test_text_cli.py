import json

import numpy as np
import pytest
from click.testing import CliRunner

from rocline import Embedder, Generator
from rocline.errors import InputError, ModelError
from rocline.runtime import text_cli

PROMPT = "Once upon a time"


def run(command, *arguments, text=None):
    """Runs a command in this process; errors of ours are raised, as the root command expects."""
    arguments = [*map(str, arguments), "--provider", "cpu"]
    return CliRunner().invoke(command, arguments, input=text, catch_exceptions=False)


@pytest.fixture(scope="module")
def answer(endless):
    with Generator(endless, ["cpu"]) as generator:
        return generator.generate(PROMPT, max_new_tokens=20, temperature=1.5, top_k=50, seed=4)


SAMPLING = ("--max-new-tokens", 20, "--temperature", 1.5, "--top-k", 50, "--seed", 4)


def test_generate_prints_the_answer_and_where_it_ran(endless, answer):
    result = run(text_cli.generate, endless, "--prompt", PROMPT, *SAMPLING)
    assert result.exit_code == 0
    assert result.stdout == answer.text + "\n"
    assert result.stderr.startswith("20 tokens, ")
    assert result.stderr.endswith("ended by length, CPUExecutionProvider\n")


def test_generate_reads_the_prompt_from_stdin(endless, answer):
    result = run(text_cli.generate, endless, "--prompt", "-", *SAMPLING, text=PROMPT + "\n")
    assert result.stdout == answer.text + "\n"


def test_generate_prints_json(endless, answer):
    result = run(text_cli.generate, endless, "--prompt", PROMPT, *SAMPLING, "--json")
    document = json.loads(result.stdout)
    assert (document["text"], document["tokens"]) == (answer.text, list(answer.tokens))
    assert (document["finish_reason"], document["prompt_tokens"]) == ("length", len(PROMPT))
    assert document["providers"] == ["CPUExecutionProvider"]
    assert document["tokens_per_s"] > 0


def test_generate_stops_before_the_stop_string(endless, answer):
    stop = answer.text[4:6]
    result = run(text_cli.generate, endless, "--prompt", PROMPT, *SAMPLING, "--stop", "nothing", "--stop", stop)
    assert result.stdout == answer.text[: answer.text.index(stop)] + "\n"


def test_a_wrong_option_is_an_input_error(endless):
    with pytest.raises(InputError, match=r"top_p is 2.0, expected"):
        run(text_cli.generate, endless, "--prompt", PROMPT, "--top-p", 2)


@pytest.mark.parametrize(
    ("command", "arguments", "given"),
    [
        (text_cli.generate, ("--prompt", "-"), b"ab\xff"),
        (text_cli.chat, (), b"ab\xff\n"),
        (text_cli.embed, ("--file", "-"), b"fine\nab\xff\n"),
    ],
)
def test_bytes_that_are_no_utf_8_are_an_input_error(command, arguments, given, endless, minilm):
    model = minilm if command is text_cli.embed else endless
    with pytest.raises(InputError, match=r"^text: '\\udcff' at character \d+ is half a character.*is the input UTF-8"):
        run(command, model, *arguments, text=given)


def test_a_capacity_bounds_prompt_and_answer(endless):
    arguments = (endless, "--prompt", PROMPT, "--json", "--capacity", len(PROMPT) + 3)
    assert len(json.loads(run(text_cli.generate, *arguments).stdout)["tokens"]) == 3
    with pytest.raises(InputError, match=r"the prompt is 16 tokens, expected fewer than the capacity of 5"):
        run(text_cli.generate, *arguments[:-1], 5)
    with pytest.raises(InputError, match=r"tokens, expected fewer than the capacity of 5"):
        run(text_cli.chat, endless, "--capacity", 5, text="Hi there\n")


def test_a_piped_chat_answers_line_by_line_and_remembers(endless):
    with Generator(endless, ["cpu"]) as generator:

        def ask(*contents):
            roles = ["user", "assistant"] * len(contents)
            messages = [{"role": "system", "content": "S"}]
            messages += [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
            return generator.chat(messages, max_new_tokens=8).text

        first = ask("one")
        expected = [first, ask("one", first, "two"), first]
    lines = "one\n\ntwo\n/reset\none\n/exit\nnever\n"
    result = run(text_cli.chat, endless, "--system", "S", "--max-new-tokens", 8, text=lines)
    assert result.exit_code == 0
    assert result.stdout == "".join(text + "\n" for text in expected)


def test_chat_needs_a_template(tiny_decoder):
    with pytest.raises(ModelError, match="no chat template"):
        run(text_cli.chat, tiny_decoder("llama")[1], text="Hi\n")


def test_embed_prints_vectors_similarities_and_json(minilm, tmp_path):
    texts = ["a cat", "a kitten", "tax law"]
    with Embedder(minilm, ["cpu"]) as embedder:
        expected = embedder.embed(texts)
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(texts[1:]) + "\n")
    arguments = (minilm, "--text", texts[0], "--file", lines)

    rows = run(text_cli.embed, *arguments).stdout.splitlines()
    assert [row.split()[384:] for row in rows] == [text.split() for text in texts]
    printed = np.array([row.split()[:384] for row in rows], np.float32)
    np.testing.assert_allclose(printed, expected, atol=1e-5)

    result = run(text_cli.embed, *arguments, "--similarity")
    table = np.array([row.split()[:3] for row in result.stdout.splitlines()], np.float32)
    np.testing.assert_allclose(table, expected @ expected.T, atol=1e-4)
    assert "3 vectors of 384 numbers, mean pooling, normalised" in result.stderr

    document = json.loads(run(text_cli.embed, *arguments, "--json", "--similarity").stdout)
    assert document["texts"] == texts
    np.testing.assert_allclose(document["vectors"], expected, atol=1e-6)
    np.testing.assert_allclose(document["similarity"], expected @ expected.T, atol=1e-5)


def test_embed_saves_vectors_and_overwrites_only_when_told(minilm, tmp_path):
    output = tmp_path / "vectors.npy"
    assert run(text_cli.embed, minilm, "--text", "a", "--output", output).stdout == ""
    assert np.load(output).shape == (1, 384)
    with pytest.raises(InputError, match="exists, pass --force"):
        run(text_cli.embed, minilm, "--text", "a", "--output", output)
    run(text_cli.embed, minilm, "--file", "-", "--output", output, "--force", text="a\nb\n")
    assert np.load(output).shape == (2, 384)
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.npy"]


@pytest.mark.parametrize("arguments", [(), ("--text", "a", "--output", "vectors.txt")])
def test_embed_refuses_what_it_cannot_do_as_wrong_usage(minilm, arguments):
    assert run(text_cli.embed, minilm, *arguments).exit_code == 2
