"""Decoding in a static cache, on a decoder of one layer that is written by hand."""

import numpy as np
import pytest
import small_decoder
import small_models
from onnx import TensorProto, helper

from rocline import Session
from rocline.errors import DeviceMemoryError, InputError, ModelError, RoclineError
from rocline.runtime.decoder import Interface
from rocline.runtime.prefix_cache import PrefixCache
from rocline.runtime.sampling import Sampler, Sampling
from rocline.runtime.static_cache import PAGE, StaticDecoder

PROMPT = [7, 31, 2, 2, 19, 44, 5, 0, 12, 30, 8, 8, 21, 3, 49, 17]


@pytest.fixture(scope="module")
def open_decoder(tmp_path_factory):
    """`open_decoder(head=..., poison=..., capacity=...)`: a `StaticDecoder` whose session stays open."""
    sessions = {}

    def start(capacity=None, context=small_decoder.CONTEXT, **arguments):
        key = tuple(sorted(arguments.items()))
        if key not in sessions:
            path = small_models.save(small_decoder.static(**arguments), tmp_path_factory.mktemp("decoder"))
            sessions[key] = Session(path, ["cpu"])
        session = sessions[key]
        return StaticDecoder(session, Interface.read(session), capacity, context)

    yield start
    for session in sessions.values():
        session.close()


def decode(text, tokens, count, sampling=None):
    """Adds ``tokens`` and chooses ``count`` more."""
    sampler = Sampler(sampling or Sampling(), tokens)
    answer = [text.choose(tokens, sampler)]
    while len(answer) < count:
        answer.append(text.choose(answer[-1:], sampler))
    return answer


def test_the_layout_is_found_in_the_graph(open_decoder):
    assert open_decoder().interface.static
    assert open_decoder().interface.head == ()
    assert open_decoder(head=True).interface.head == (
        "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"
    )  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 5, 8, 15, 16])
def test_chunks_of_any_size_give_the_same_logits(chunk, open_decoder):
    decoder = open_decoder()
    expected = decoder.start(20).logits(PROMPT).copy()
    text = decoder.start(20)
    for start in range(0, len(PROMPT) - chunk, chunk):
        text.extend(PROMPT[start : start + chunk])
    np.testing.assert_allclose(text.logits(PROMPT[len(text.tokens) :]), expected, atol=1e-5)
    assert text.tokens == PROMPT


def test_a_rewound_text_goes_on_as_if_it_had_never_been_longer(open_decoder):
    decoder = open_decoder()
    text = decoder.start(40)
    decode(text, PROMPT, 12)
    text.rewind(6)
    assert text.tokens == PROMPT[:6]
    fresh = decoder.start(40)
    assert decode(text, [1, 2, 3], 20) == decode(fresh, [*PROMPT[:6], 1, 2, 3], 20)


def test_texts_that_take_turns_do_not_disturb_each_other(open_decoder):
    decoder = open_decoder()
    prompts = [PROMPT, PROMPT[::-1], [4]]
    alone = [decode(decoder.start(40), prompt, 20) for prompt in prompts]
    texts = [decoder.start(40) for _ in prompts]
    samplers = [Sampler(Sampling(), prompt) for prompt in prompts]
    together = [[text.choose(prompt, s)] for text, prompt, s in zip(texts, prompts, samplers, strict=True)]
    for _ in range(19):
        for text, answer, sampler in zip(texts, together, samplers, strict=True):
            answer.append(text.choose(answer[-1:], sampler))
    assert together == alone


def test_a_cache_has_whole_pages_the_context_at_most_or_the_capacity(open_decoder):
    assert open_decoder(context=None).start(1).room == PAGE
    assert open_decoder(context=None).start(PAGE + 1).room == 2 * PAGE
    assert open_decoder().start(1).room == small_decoder.CONTEXT
    assert open_decoder(capacity=11).start(1).room == 11


def test_what_does_not_fit_is_refused_and_changes_nothing(open_decoder):
    decoder = open_decoder(capacity=20)
    text = decoder.start(20)
    text.extend(PROMPT)
    with pytest.raises(InputError, match=r"21 tokens, expected at most the cache's 20$"):
        text.logits([1, 2, 3, 4, 5])
    assert decode(text, [1, 2, 3, 4], 1) == decode(decoder.start(20), [*PROMPT, 1, 2, 3, 4], 1)


def test_a_cache_that_memory_has_no_room_for_is_refused_and_leaves_nothing(open_decoder, monkeypatch):
    decoder = open_decoder()
    pool = decoder.session.device.pool
    pool.trim()
    used = pool.statistics.used
    # Room for one of its two buffers.
    monkeypatch.setattr(pool, "limit", used + 4000)
    with pytest.raises(DeviceMemoryError, match=r"^a KV cache of 40 tokens: .*; choose a smaller capacity$"):
        decoder.start(40)
    assert pool.statistics.used == used


@pytest.mark.parametrize("head", [False, True])
def test_a_step_binds_nothing(head, open_decoder, monkeypatch):
    decoder = open_decoder(head=head)
    text = decoder.start(40)
    answer = decode(text, PROMPT, 2)
    monkeypatch.setattr(decoder.session, "bind", None)
    assert len(decode(text, answer[-1:], 10)) == 10


def test_the_head_chooses_the_hosts_greedy_tokens(open_decoder):
    assert decode(open_decoder(head=True).start(40), PROMPT, 24) == decode(open_decoder().start(40), PROMPT, 24)


def test_a_seed_makes_the_heads_answer_reproducible(open_decoder):
    decoder = open_decoder(head=True)

    def answer(seed):
        return decode(decoder.start(40), PROMPT, 24, Sampling(temperature=1.5, seed=seed))

    assert answer(5) == answer(5)
    assert answer(5) != answer(6)
    assert answer(2**64 + 5) == answer(5)
    assert answer(None) != answer(None)


def test_the_head_hears_every_filter(open_decoder):
    decoder = open_decoder(head=True)
    greedy = decode(decoder.start(40), PROMPT, 24)
    for only_the_best in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        sampling = Sampling(temperature=3.0, seed=1, **only_the_best)
        assert decode(decoder.start(40), PROMPT, 24, sampling) == greedy
    # As near to its bounds as a filter may come, where float32 and int32 end earlier.
    for extreme in ({"top_p": 1e-60}, {"temperature": 1e-60}, {"top_k": 1, "temperature": 1e60}):
        sampling = Sampling(**({"temperature": 3.0, "seed": 1} | extreme))
        assert decode(decoder.start(40), PROMPT, 24, sampling) == greedy
    decode(decoder.start(40), PROMPT, 1, Sampling(temperature=3.0, seed=1, top_k=2**40))
    # And on a text that another answer used before.
    text = decoder.start(40)
    decode(text, PROMPT, 4, Sampling(temperature=3.0, seed=1))
    text.rewind(0)
    assert decode(text, PROMPT, 24) == greedy


def test_a_repetition_penalty_is_the_hosts_work(open_decoder):
    sampling = Sampling(repetition_penalty=1.7)
    penalised = decode(open_decoder(head=True).start(40), PROMPT, 24, sampling)
    assert penalised == decode(open_decoder().start(40), PROMPT, 24, sampling)
    assert penalised != decode(open_decoder().start(40), PROMPT, 24)


@pytest.mark.parametrize("head", [False, True])
def test_logits_that_are_no_numbers_are_an_error_that_names_the_place(head, open_decoder):
    text = open_decoder(head=head, poison=9).start(40)
    decode(text, [1, 2, 3], 1)
    with pytest.raises(ModelError, match="the largest logit after token 4 is nan, expected"):
        decode(text, [9], 1)


def test_a_closed_session_says_so(tmp_path):
    session = Session(small_models.save(small_decoder.static(), tmp_path), ["cpu"])
    text = StaticDecoder(session, Interface.read(session), None, None).start(20)
    decode(text, PROMPT, 1)
    session.close()
    with pytest.raises(RoclineError, match="closed"):
        decode(text, [1], 1)
    text.close()
    text.close()


def open_heads(model):
    for value in (*model.graph.input, *model.graph.output):
        if "0.key" in value.name:
            value.type.tensor_type.shape.dim[1].dim_param = "heads"


def double_logits(model):
    model.graph.node[-1].output[0] = "single"
    model.graph.node.append(helper.make_node("Cast", ["single"], ["logits"], to=TensorProto.DOUBLE))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (open_heads, r"input 'past_key_values.0.key' is float32 \(1, 'heads', .* with heads and size fixed"),
        (double_logits, r"output 'logits' is float64 .* expected float32 or float16 .* with the vocabulary fixed"),
    ],
)
def test_a_graph_of_other_types_or_open_sizes_is_refused(edit, message, tmp_path):
    model = small_decoder.static()
    edit(model)
    with Session(small_models.save(model, tmp_path), ["cpu"]) as session, pytest.raises(ModelError, match=message):
        StaticDecoder(session, Interface.read(session), None, None)


def test_a_prefix_cache_computes_only_what_is_new(open_decoder):
    decoder = open_decoder()
    with PrefixCache(decoder) as cache:
        with cache.lend(PROMPT, 40) as text:
            assert text.tokens == []
            answer = decode(text, PROMPT, 5)
        turn = [*PROMPT, *answer[:3], 33, 34]
        with cache.lend(turn, 40) as again:
            assert again is text
            assert again.tokens == turn[:-2]
            assert decode(again, turn[len(again.tokens) :], 8) == decode(decoder.start(40), turn, 8)
        # All of it is there, but the last token's logits are needed.
        with cache.lend(PROMPT, 40) as text:
            assert text.tokens == PROMPT[:-1]


def test_a_prefix_cache_serves_one_stream_at_a_time(open_decoder):
    cache = PrefixCache(open_decoder())
    with cache.lend(PROMPT, 40), pytest.raises(InputError, match="another stream is using it"):
        cache.lend(PROMPT, 40).__enter__()
    with cache.lend(PROMPT, 40) as text:
        assert text.room == 40
    cache.close()
    cache.close()


def test_a_prefix_cache_that_is_too_small_begins_anew_at_twice_its_size(open_decoder):
    cache = PrefixCache(open_decoder(context=None))
    with cache.lend(PROMPT, 40) as text:
        decode(text, PROMPT, 1)
    with cache.lend(PROMPT, PAGE + 1) as text:
        assert (text.tokens, text.room) == ([], 2 * PAGE)
        decode(text, PROMPT, 1)
    with cache.lend(PROMPT, 2 * PAGE + 1) as text:
        assert (text.tokens, text.room) == ([], 4 * PAGE)
