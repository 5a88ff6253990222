import itertools

import pytest

from rocline.errors import InputError
from rocline.runtime.stop_strings import StopStrings


def run(pieces, stops):
    matcher = StopStrings(stops)
    given = []
    for piece in pieces:
        given.append(matcher.push(piece))
        if matcher.found:
            return given, True
    given.append(matcher.flush())
    return given, False


def splits(text):
    for cuts in itertools.product((False, True), repeat=len(text) - 1):
        pieces, start = [], 0
        for index, cut in enumerate(cuts, 1):
            if cut:
                pieces.append(text[start:index])
                start = index
        yield [*pieces, text[start:]]


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one END two", ["END"], "one "),
        ("aaaab", ["aab"], "aa"),
        ("ababac", ["abac"], "ab"),
        ("no stop EN", ["END"], "no stop EN"),
        ("x\n\nUser:", ["\n\nUser:", "###"], "x"),
        ("a##b###c", ["###"], "a##b"),
        ("plain", [], "plain"),
        ("END", ["END"], ""),
        ("héllo🙂!", ["🙂"], "héllo"),
    ],
)
def test_every_way_to_cut_the_text_into_pieces_gives_the_same(text, stops, expected):
    for pieces in splits(text):
        given, found = run(pieces, stops)
        assert "".join(given) == expected, pieces
        assert found == (expected != text)


def test_text_that_may_begin_a_stop_string_is_held_back_and_no_more():
    matcher = StopStrings(["<end>"])
    assert matcher.push("a <") == "a "
    assert matcher.push("en") == ""
    assert matcher.push("ough> <e") == "<enough> "
    assert matcher.flush() == "<e"
    assert not matcher.found


@pytest.mark.parametrize("stops", ["END", [""], [3]])
def test_what_is_no_list_of_stop_strings_is_refused(stops):
    with pytest.raises(InputError, match="stop: "):
        StopStrings(stops)
