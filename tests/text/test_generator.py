import gc
import json
import shutil
import threading
from contextlib import suppress

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime import OrtValue
from transformers import AutoModelForCausalLM

from rocline import Generator
from rocline.errors import InputError, ModelError, RoclineError
from rocline.runtime.decoder import Decoding
from rocline.runtime.devices import Buffer

PROMPT = "The quick brown fox jumps over"


def copied(folder, to, *, edit_model=None, **files):
    """A copy of a model folder with an edited graph and JSON files changed by key."""
    shutil.copytree(folder, to)
    if edit_model is not None:
        model = onnx.load(to / "model.onnx")
        edit_model(model)
        onnx.save(model, to / "model.onnx")
    for name, changes in files.items():
        path = to / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (to / "rocline.json").unlink(missing_ok=True)
    return to


def reference_tokens(folder, ids, new):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([ids])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new)
    return out[0, ids.shape[1] :].tolist()


def live_tensors():
    gc.collect()
    return sum(type(item) is OrtValue or (type(item) is Buffer and not item.closed) for item in gc.get_objects())


class Scripted(Decoding):
    """A text whose tokens are written down."""

    def __init__(self, answer):
        super().__init__()
        self.answer = iter(answer)

    def choose(self, tokens, sampler):
        return next(self.answer)

    extend = logits = rewind = None

    def close(self):
        pass


@pytest.fixture(scope="module", params=["static", "growing"])
def generator(request, tiny_decoder):
    """A tiny Llama in either layout of its cache."""
    with Generator(tiny_decoder("llama", cache=request.param)[1]) as generator:
        yield generator


@pytest.fixture(scope="module")
def endless_generator(endless):
    with Generator(endless) as generator:
        yield generator


@pytest.mark.parametrize("chunk", [1, 5, 128])
@pytest.mark.parametrize("cache", ["static", "growing"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_greedy_tokens_are_those_of_transformers_whatever_the_prefill_chunk(kind, cache, chunk, tiny_decoder):
    source, folder = tiny_decoder(kind, cache=cache)
    with Generator(folder, prefill_chunk=chunk) as generator:
        assert generator._decoder.interface.static == (cache == "static")
        result = generator.generate(PROMPT, max_new_tokens=40)
        expected = reference_tokens(source, generator.tokenizer.encode(PROMPT), 40)
    assert list(result.tokens) == expected
    assert result.prompt_tokens == len(PROMPT)


@pytest.mark.parametrize("cache", ["static", "growing"])
def test_half_precision_models_generate(cache, tiny_decoder):
    folder = tiny_decoder("llama", dtype="fp16", cache=cache)[1]
    with Generator(folder) as generator:
        assert generator._decoder.interface.inputs["past_key_values.0.key"].dtype == "float16"
        result = generator.generate(PROMPT, max_new_tokens=20, temperature=0.8, seed=1)
    assert len(result.tokens) == 20


def test_pieces_join_to_the_text_and_are_whole_characters(endless_generator):
    for seed in range(5):
        options = {"max_new_tokens": 80, "temperature": 3.0, "seed": seed}
        with endless_generator.stream(PROMPT, **options) as stream:
            pieces = list(stream)
        result = endless_generator.generate(PROMPT, **options)
        assert "".join(pieces) == result.text == stream.result().text
        assert all(pieces)
        "".join(pieces).encode("utf-8")


def test_the_same_seed_gives_the_same_answer(endless_generator):
    def answer(seed):
        return endless_generator.generate(PROMPT, max_new_tokens=30, temperature=1.5, seed=seed).tokens

    assert answer(5) == answer(5)
    assert answer(5) != answer(6)


def test_an_eos_token_ends_the_answer_and_is_not_printed(tiny_decoder, tmp_path, generator):
    free = generator.generate(PROMPT, max_new_tokens=12)
    at = next(i for i, token in enumerate(free.tokens) if i >= 3 and token not in free.tokens[:i])
    eos = free.tokens[at]
    for name, value in (("one", eos), ("several", [259, eos])):
        folder = copied(tiny_decoder("llama")[1], tmp_path / name, generation_config={"eos_token_id": value})
        with Generator(folder) as ending:
            result = ending.generate(PROMPT, max_new_tokens=12)
        assert result.tokens == free.tokens[: at + 1]
        assert result.finish_reason == "eos"
        assert result.text == generator.generate(PROMPT, max_new_tokens=at).text


def test_config_names_the_eos_where_generation_config_does_not(tiny_decoder, tmp_path):
    source = tiny_decoder("llama")[1]
    changes = {"eos_token_id": 77, "text_config": None}
    folder = copied(source, tmp_path / "model", generation_config={"eos_token_id": None}, config=changes)
    with Generator(folder) as generator:
        assert generator.config.eos_ids == {77}


def test_a_stop_string_ends_the_answer_before_it_and_is_never_streamed(endless_generator):
    free = endless_generator.generate(PROMPT, max_new_tokens=60, temperature=2.0, seed=2)
    stop = free.text[20:24]
    stream = endless_generator.stream(PROMPT, max_new_tokens=60, temperature=2.0, seed=2, stop=["no such text", stop])
    pieces = list(stream)
    assert "".join(pieces) == free.text[: free.text.index(stop)]
    assert stream.finish_reason == "stop"
    assert stream.tokens == free.tokens[: len(stream.tokens)]


def test_the_longest_answer_is_max_new_tokens(endless_generator):
    for wanted in (1, 2, 17):
        result = endless_generator.generate(PROMPT, max_new_tokens=wanted)
        assert (len(result.tokens), result.finish_reason) == (wanted, "length")


def test_the_context_bounds_prompt_and_answer(tiny_decoder, tmp_path):
    folder = copied(tiny_decoder("gpt2")[1], tmp_path / "model", config={"eos_token_id": None},
                    generation_config={"eos_token_id": None})  # fmt: skip
    with Generator(folder) as generator:
        assert generator.config.context_length == 256
        result = generator.generate("x" * 250, max_new_tokens=100)
        assert (len(result.tokens), result.finish_reason) == (6, "length")
        with pytest.raises(
            InputError, match="the prompt is 256 tokens, expected fewer than the model's context of 256"
        ):
            generator.stream("x" * 256)


@pytest.mark.parametrize("cache", ["static", "growing"])
def test_the_capacity_bounds_prompt_and_answer(cache, tiny_decoder):
    folder = tiny_decoder("gpt2", cache=cache)[1]
    with Generator(folder, capacity=40) as generator:
        result = generator.generate("x" * 33, max_new_tokens=100)
        assert (len(result.tokens), result.finish_reason) == (7, "length")
        with pytest.raises(InputError, match="the prompt is 40 tokens, expected fewer than the capacity of 40"):
            generator.stream("x" * 40)
    with Generator(folder) as generator:
        assert generator.generate("x" * 33, max_new_tokens=7).tokens == result.tokens


@pytest.mark.parametrize(
    ("capacity", "message"),
    [
        (0, "capacity is 0, expected a whole number from 1 up"),
        (5.5, "capacity is 5.5, expected a whole number from 1 up"),
        (257, "expected at most the model's context of 256"),
    ],
)
def test_a_capacity_that_cannot_be_is_refused(capacity, message, tiny_decoder):
    with pytest.raises(InputError, match=message):
        Generator(tiny_decoder("gpt2")[1], capacity=capacity)


def test_an_empty_prompt_starts_from_the_bos_token(generator, tiny_decoder, tmp_path):
    expected = reference_tokens(tiny_decoder("llama")[0], [generator.config.bos_id], 8)
    assert list(generator.generate("", max_new_tokens=8).tokens) == expected
    nothing = {"bos_token_id": None}
    folder = copied(tiny_decoder("llama")[1], tmp_path / "model", config=nothing, generation_config=nothing)
    with Generator(folder) as other, pytest.raises(InputError, match="prompt is empty"):
        other.stream("")


def test_streams_open_at_once_do_not_disturb_each_other(endless_generator):
    prompts = [PROMPT, "something else"]
    alone = [endless_generator.generate(prompt, max_new_tokens=25).tokens for prompt in prompts]
    streams = [endless_generator.stream(prompt, max_new_tokens=25) for prompt in prompts]
    open_streams = list(streams)
    while open_streams:
        open_streams = [stream for stream in open_streams if next(stream, None) is not None]
    assert [stream.tokens for stream in streams] == alone


@pytest.mark.parametrize("leave", ["close", "with", "drop", "exception"])
def test_leaving_early_frees_the_cache(leave, generator):
    before = live_tensors()
    stream = generator.stream(PROMPT, max_new_tokens=1000)
    next(stream)
    assert live_tensors() > before
    if leave == "close":
        stream.close()
        stream.close()
        assert list(stream) == []
        with pytest.raises(InputError, match="the stream was closed after"):
            stream.result()
    elif leave == "with":
        with stream:
            next(stream)
    elif leave == "exception":
        with pytest.raises(KeyError), stream:
            raise KeyError
    else:
        gc.disable()
        try:
            del stream
        finally:
            gc.enable()
    assert live_tensors() == before


def test_a_closed_generator_says_so_and_closes_twice(tiny_decoder):
    generator = Generator(tiny_decoder("llama")[1])
    stream = generator.stream(PROMPT)
    next(stream)
    generator.close()
    generator.close()
    with pytest.raises(RoclineError, match="closed"):
        stream.result()
    with pytest.raises(RoclineError, match="closed"):
        generator.generate(PROMPT)


@pytest.mark.parametrize("cache", ["static", "growing"])
def test_logits_that_are_no_numbers_are_an_error_that_names_the_place(cache, tiny_decoder, tmp_path):
    def poison(model):
        (weight,) = [w for w in model.graph.initializer if w.name == "model.norm.weight"]
        weight.CopyFrom(numpy_helper.from_array(np.full(tuple(weight.dims), np.nan, np.float32), weight.name))

    folder = copied(tiny_decoder("llama", cache=cache)[1], tmp_path / "model", edit_model=poison)
    with Generator(folder) as generator, pytest.raises(ModelError, match="the largest logit after token 30 is nan"):
        generator.generate(PROMPT)


def test_a_graph_with_unknown_inputs_is_refused_by_name(tiny_decoder, tmp_path):
    def add_input(model):
        model.graph.input.append(onnx.helper.make_tensor_value_info("pixel_values", 1, ["batch", 3]))

    folder = copied(tiny_decoder("llama")[1], tmp_path / "model", edit_model=add_input)
    with pytest.raises(ModelError, match="inputs pixel_values are unknown, expected a decoder-only model"):
        Generator(folder)


def test_an_encoder_is_refused(minilm, tmp_path):
    with pytest.raises(ModelError, match="inputs token_type_ids are unknown"):
        Generator(minilm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5, expected"),
        ({"max_new_tokens": True}, "max_new_tokens is True, expected"),
        ({"temperature": -1}, "temperature is -1, expected"),
        ({"stop": "END"}, "stop: 'END', expected a list of strings"),
        ({"stop": None}, "stop: None, expected a list of strings"),
    ],
)
def test_wrong_options_are_refused_before_the_first_piece(options, message, generator):
    with pytest.raises(InputError, match=message):
        generator.stream(PROMPT, **options)


def test_a_prompt_that_is_no_text_is_refused(generator):
    with pytest.raises(InputError, match="prompt is a list, expected text"):
        generator.stream([1, 2])


def test_half_a_character_is_refused_by_its_place(generator):
    with pytest.raises(InputError, match=r"^text: '\\udcff' at character 2 is half a character, expected valid"):
        generator.stream(b"ab\xff".decode("utf-8", "surrogateescape"))


def test_a_chat_is_the_prompt_that_the_template_makes(endless_generator):
    messages = [{"role": "user", "content": "Hi"}]
    assert endless_generator.chat_template.render(messages) == "[user: Hi]"
    answer = endless_generator.chat(messages, max_new_tokens=12)
    assert answer.tokens == endless_generator.generate("[user: Hi]", max_new_tokens=12).tokens


def test_a_conversation_computes_only_what_is_new(endless_generator):
    def ask(messages, cache=None):
        return endless_generator.chat(messages, max_new_tokens=9, cache=cache)

    first = [{"role": "user", "content": "one two three"}]
    with endless_generator.prefix_cache() as cache:
        answer = ask(first, cache)
        assert (answer.tokens, answer.reused_tokens) == (ask(first).tokens, 0)
        second = [*first, {"role": "assistant", "content": "other words"}, {"role": "user", "content": "four"}]
        again = ask(second, cache)
        shared = len("[user: one two three]")
        assert shared <= again.reused_tokens < again.prompt_tokens
        assert again.tokens == ask(second).tokens
        # All of the prompt is there; its last token is computed again for its logits.
        assert ask(second, cache).reused_tokens == again.prompt_tokens - 1


def test_closing_waits_for_a_run_of_a_growing_cache(tiny_decoder, monkeypatch):
    generator = Generator(tiny_decoder("llama", cache="growing")[1])
    session = generator._session.ort
    closing = threading.Thread(target=generator.close)
    run, open_in_the_run = session.run_with_iobinding, []

    def run_while_another_closes(binding, options):
        if not closing.ident:
            closing.start()
            closing.join(0.2)
        open_in_the_run.append(generator._session.ort is session)
        run(binding, options)

    monkeypatch.setattr(session, "run_with_iobinding", run_while_another_closes)
    with suppress(RoclineError):  # closed between two tokens, or not before the last
        generator.generate("one two three", max_new_tokens=8)
    closing.join(60)
    assert open_in_the_run[:1] == [True]


def test_a_growing_cache_lets_a_closed_session_alone(tiny_decoder):
    generator = Generator(tiny_decoder("llama", cache="growing")[1])
    text = generator._decoder.start(8)
    text.extend([1, 2])
    calls, binding = [], text._binding

    class Watched:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(binding, name)

    text._binding = Watched()
    text.extend([3])
    assert "bind_ortvalue_input" in calls
    calls.clear()
    generator.close()
    with pytest.raises(RoclineError, match="the session is closed"):
        text.extend([4])
    # ONNX Runtime's binding reads from the session, which is gone.
    assert calls == []


def test_a_growing_cache_goes_on_where_it_ended_and_nowhere_else(tiny_decoder):
    with Generator(tiny_decoder("llama", cache="growing")[1]) as generator, generator.prefix_cache() as cache:
        # The first new token is never computed with.
        generator.generate(PROMPT, max_new_tokens=1, cache=cache)
        continued = generator.generate(f"{PROMPT} and", max_new_tokens=4, cache=cache)
        assert continued.reused_tokens == len(PROMPT)
        assert continued.tokens == generator.generate(f"{PROMPT} and", max_new_tokens=4).tokens
        other = generator.generate(PROMPT[:9], max_new_tokens=4, cache=cache)
        assert (other.reused_tokens, other.tokens) == (0, generator.generate(PROMPT[:9], max_new_tokens=4).tokens)


def test_a_cache_that_another_stream_uses_is_refused_until_that_is_closed(endless_generator):
    cache = endless_generator.prefix_cache()
    with endless_generator.stream(PROMPT, max_new_tokens=50, cache=cache) as stream:
        next(stream)
        with pytest.raises(InputError, match="cache: another stream is using it"):
            endless_generator.generate(PROMPT, cache=cache)
    assert endless_generator.generate(PROMPT, max_new_tokens=1, cache=cache).reused_tokens == len(PROMPT) - 1
    cache.close()


def test_a_cache_of_another_generator_is_refused(generator, endless_generator):
    with endless_generator.prefix_cache() as cache, pytest.raises(InputError, match="cache: another generator's"):
        generator.stream(PROMPT, cache=cache)


def test_a_closed_cache_says_so_and_ends_the_stream_that_uses_it(generator):
    cache = generator.prefix_cache()
    with generator.stream(PROMPT, cache=cache) as stream:
        next(stream)
        cache.close()
        cache.close()
        with pytest.raises(RoclineError, match="closed"):
            stream.result()
    with pytest.raises(RoclineError, match="cache: closed"):
        generator.generate(PROMPT, cache=cache)


def test_a_stop_string_at_the_very_end_is_found_in_what_was_held_back(generator, monkeypatch):
    """A token that begins a character which never ends becomes U+FFFD when the answer is over."""
    (half,) = generator.tokenizer.encode("é")[:1]
    monkeypatch.setattr(generator._decoder, "start", lambda room: Scripted([half]))
    answer = generator.generate("a", max_new_tokens=1, stop=["\N{REPLACEMENT CHARACTER}"])
    assert (answer.text, answer.tokens, answer.finish_reason) == ("", (half,), "stop")


def test_a_sampling_head_gives_the_same_greedy_tokens(tiny_decoder):
    source, folder = tiny_decoder("llama", sampling_head=True)
    with Generator(folder) as generator:
        assert generator._decoder.interface.head
        ids = generator.tokenizer.encode(PROMPT)
        assert list(generator.generate(PROMPT, max_new_tokens=40).tokens) == reference_tokens(source, ids, 40)
        sampled = [
            generator.generate(PROMPT, max_new_tokens=20, temperature=1.5, seed=seed).tokens for seed in (1, 1, 2)
        ]
        assert sampled[0] == sampled[1] != sampled[2]
