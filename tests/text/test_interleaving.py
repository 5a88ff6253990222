"""Closing at every line of a stream's next piece: the right piece or one line of error, and nothing else."""

import numpy as np
import pytest
import small_decoder
import small_models
from interleaving import interleaved, use_locks
from onnx import helper

from rocline import Session
from rocline.errors import RoclineError
from rocline.runtime import decoder as decoders
from rocline.runtime import text_stream
from rocline.runtime.decoder import Interface
from rocline.runtime.growing_cache import GrowingDecoder
from rocline.runtime.prefix_cache import PrefixCache
from rocline.runtime.sampling import Sampling
from rocline.runtime.static_cache import StaticDecoder
from rocline.runtime.stop_strings import StopStrings
from rocline.runtime.text_stream import Plan, TextStream

PROMPT = [7, 31, 2]


class Numbers:
    """A detokenizer that writes a token's number."""

    def __init__(self, tokenizer, prompt):
        pass

    def push(self, token):
        return f"{token} "

    def flush(self):
        return ""


@pytest.fixture(autouse=True)
def locks(monkeypatch):
    use_locks(monkeypatch, decoders, text_stream)
    monkeypatch.setattr(text_stream, "Detokenizer", Numbers)


def growing():
    """The number of tokens so far, modulo 8, as the likeliest token."""
    int64, floats, past, present = small_models.INT64, small_models.FLOAT, "past_key_values.0.key", "present.0.key"
    initializers = [
        helper.make_tensor("shape", int64, [4], [1, 1, -1, 1]),
        helper.make_tensor("vocabulary", floats, [1, 1, 8], np.arange(8)),
        helper.make_tensor("last", int64, [1], [2]),
        helper.make_tensor("eight", floats, [1], [8]),
    ]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=floats),
        helper.make_node("Reshape", ["ids", "shape"], ["new"]),
        helper.make_node("Concat", [past, "new"], [present], axis=2),
        helper.make_node("Shape", [present], ["length"], start=2, end=3),
        helper.make_node("Cast", ["length"], ["count"], to=floats),
        helper.make_node("Mod", ["count", "eight"], ["token"], fmod=1),
        helper.make_node("Sub", ["vocabulary", "token"], ["distance"]),
        helper.make_node("Abs", ["distance"], ["far"]),
        helper.make_node("Neg", ["far"], ["logits"]),
    ]
    cache = [1, 1, "past", 1]
    inputs = [("input_ids", int64, [1, "new"]), (past, floats, cache)]
    outputs = [("logits", floats, [1, 1, 8]), (present, floats, [1, 1, "all", 1])]
    return small_models.model(nodes, inputs, outputs, initializers)


@pytest.fixture(params=["static", "sampling head", "growing"])
def open_decoder(request, tmp_path):
    proto = growing() if request.param == "growing" else small_decoder.static(head=request.param == "sampling head")
    path = small_models.save(proto, tmp_path)

    def start():
        session = Session(path, ["cpu"], options={"threads": 1})
        interface = Interface.read(session)
        assert interface.static == (request.param != "growing")
        return StaticDecoder(session, interface, 16, 40) if interface.static else GrowingDecoder(session, interface, 0)

    return start


def stream(decoder, cache=None):
    plan = Plan(Sampling(), StopStrings(()), frozenset(), max_new_tokens=3, prefill_chunk=2)
    return TextStream(decoder, None, PROMPT, plan, cache)


def check(outcomes, wanted, *messages):
    for got, closed in outcomes:
        assert closed is None, closed
        if isinstance(got, RoclineError):
            assert any(message in str(got) for message in messages), got
            assert "\n" not in str(got)
        else:
            assert got == wanted, got


def pieces(text):
    return [next(text), next(text)]


def test_the_session_is_closed(open_decoder):
    decoder = open_decoder()
    wanted = pieces(stream(decoder))
    decoder.session.close()

    def make():
        decoder = open_decoder()
        text = stream(decoder)
        return decoder, text, next(text)

    outcomes = interleaved(
        make, lambda world: [world[2], next(world[1])], lambda world: world[0].session.close(), step=11
    )
    check((outcome for _, *outcome in outcomes), wanted, "closed")


def test_the_cache_is_closed(open_decoder):
    decoder = open_decoder()
    wanted = "".join(stream(decoder))

    def make():
        cache = PrefixCache(decoder)
        return cache, stream(decoder, cache)

    outcomes = interleaved(make, lambda world: world[1].result().text, lambda world: world[0].close(), step=61)
    for (cache, _), *outcome in outcomes:
        check([outcome], wanted, "closed")
        assert cache._text is None, "it keeps no memory"
    decoder.session.close()


def test_the_stream_is_closed(open_decoder):
    decoder = open_decoder()
    wanted = "".join(stream(decoder))
    outcomes = interleaved(lambda: stream(decoder), lambda text: text.result().text, lambda text: text.close(), step=61)
    check((outcome for _, *outcome in outcomes), wanted, "the stream was closed after")
    decoder.session.close()


def test_two_threads_share_a_stream(open_decoder):
    decoder = open_decoder()
    wanted = sorted(stream(decoder))
    outcomes = interleaved(lambda: stream(decoder), list, list, step=61)
    for _, first, second in outcomes:
        assert sorted(first + second) == wanted
    decoder.session.close()


def test_a_handler_closes_the_stream_that_it_interrupts(open_decoder, monkeypatch):
    decoder = open_decoder()
    text = stream(decoder)
    begin = next(text)
    monkeypatch.setattr(Numbers, "push", lambda self, token: text.close() or f"{token} ")
    assert len([begin, *text]) == 2, "the piece that it came into is the last"
    decoder.session.close()
