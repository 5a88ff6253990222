"""What does not fit a model's inputs is told before ONNX Runtime runs, all of it in one line."""

import ml_dtypes
import numpy as np
import pytest

from rocline.errors import InputError
from rocline.runtime.inputs import InputCheck
from rocline.runtime.manifest import TensorSpec
from rocline.runtime.onnx_file import ANY_RANK

IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "sequence"))
IMAGE = TensorSpec("pixels", "float32", ("batch", 3, "?", "?"))


def ints(*shape, dtype=np.int64):
    return np.zeros(shape, dtype)


def problem(specs, feeds, **kwargs):
    with pytest.raises(InputError) as caught:
        InputCheck(specs, **kwargs)(feeds)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("specs", "feeds"),
    [
        ([IDS, MASK], {"input_ids": ints(2, 7), "attention_mask": ints(2, 7)}),
        ([IDS, MASK], {"attention_mask": ints(0, 7), "input_ids": ints(0, 7)}),
        ([IMAGE], {"pixels": np.zeros((1, 3, 8, 9), np.float32)}),
        ([IMAGE], {"pixels": np.zeros((8, 9, 3, 1), np.float32).T}),
        ([TensorSpec("s", "string", (1,))], {"s": np.array(["a"], object)}),
        ([TensorSpec("s", "string", (1,))], {"s": np.array(["a"])}),
        ([TensorSpec("n", "int64", ())], {"n": np.array(3)}),
        ([TensorSpec("a", "float32", ANY_RANK)], {"a": np.zeros((1, 2, 3), np.float32)}),
        ([TensorSpec("b", "bfloat16", (2,))], {"b": np.zeros(2, ml_dtypes.bfloat16)}),
        ([TensorSpec("m", "seq(tensor(float))", ())], {"m": [np.zeros(2, np.float32)]}),
        ([IDS], {"input_ids": np.ma.zeros((1, 1), np.int64)}),
    ],
)
def test_what_fits(specs, feeds):
    InputCheck(specs)(feeds)


def test_tied_dimensions():
    message = problem([IDS, MASK], {"input_ids": ints(1, 8), "attention_mask": ints(1, 7)})
    assert message == "input 'attention_mask': shape (1, 7), expected (1, 8) to match 'input_ids'"


def test_a_symbol_used_twice_in_one_input():
    message = problem([TensorSpec("a", "int64", ("n", "n"))], {"a": ints(2, 3)})
    assert message == "input 'a': shape (2, 3), expected (2, 2)"


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"input_ids": ints(1, 8, dtype=np.int32)}, "input 'input_ids': dtype int32, expected int64"),
        ({"input_ids": ints(1, 8, dtype=">i8")}, "input 'input_ids': dtype >i8, expected int64"),
        ({"input_ids": ints(8)}, "input 'input_ids': shape (8,), expected 2 dimensions (batch, sequence)"),
        ({"input_ids": [[1, 2]]}, "input 'input_ids': list, expected a NumPy array int64 (batch, sequence)"),
        ({"input_ids": np.int64(3)}, "input 'input_ids': int64, expected a NumPy array int64 (batch, sequence)"),
        ({}, "input 'input_ids': missing, expected int64 (batch, sequence)"),
        ({"ids": ints(1, 8)}, "input 'input_ids': missing, expected int64 (batch, sequence); "
                              "input 'ids': unknown, the model takes input_ids"),
        ({"input_ids": ints(1, 8), "x": ints(1)}, "input 'x': unknown, the model takes input_ids"),
    ],
)  # fmt: skip
def test_what_does_not_fit(feeds, message):
    assert problem([IDS], feeds) == message


def test_fixed_dimension():
    message = problem([IMAGE], {"pixels": np.zeros((2, 4, 8, 9), np.float32)})
    assert message == "input 'pixels': shape (2, 4, 8, 9), expected (batch, 3, ?, ?)"


def test_string_wanted():
    message = problem([TensorSpec("s", "string", (1,))], {"s": np.array([b"a"])})
    assert message == "input 's': dtype |S1, expected string"


def test_every_problem_at_once():
    feeds = {"input_ids": ints(1, 8), "attention_mask": ints(2, 7), "extra": ints(1)}
    message = problem([IDS, MASK, IMAGE, TensorSpec("n", "int64", (4,))], feeds | {"n": ints(5, dtype=np.int8)})
    assert message == (
        "input 'pixels': missing, expected float32 (batch, 3, ?, ?); "
        "input 'attention_mask': shape (2, 7), expected (1, 8) to match 'input_ids'; "
        "input 'extra': unknown, the model takes input_ids, attention_mask, pixels, n; "
        "input 'n': dtype int8, expected int64; input 'n': shape (5,), expected (4,)"
    )


def test_an_input_with_a_default_may_be_left_out():
    default = TensorSpec("scale", "float32", (1,))
    check = InputCheck([IDS], [default])
    check({"input_ids": ints(1, 8)})
    check({"input_ids": ints(1, 8), "scale": np.ones(1, np.float32)})
    assert problem([IDS], {"scale": np.ones(1, np.float32)}, optional=[default]) == (
        "input 'input_ids': missing, expected int64 (batch, sequence)"
    )
    wrong = {"input_ids": ints(1, 8), "scale": np.ones(2, np.float32)}
    assert problem([IDS], wrong, optional=[default]) == "input 'scale': shape (2,), expected (1,)"


@pytest.mark.parametrize("feeds", [[ints(1, 8)], ints(1, 8), None, "input_ids"])
def test_what_holds_nothing_by_name(feeds):
    assert problem([IDS], feeds) == f"inputs: {type(feeds).__name__}, expected a mapping from names to tensors"


@pytest.mark.parametrize(("item", "said"), [(None, "None"), (b"a", "b'a'"), (1.5, "1.5")])
def test_only_strings_are_strings(item, said):
    text = TensorSpec("text", "string", ("n",))
    assert problem([text], {"text": np.array(["a", item], object)}) == f"input 'text': element {said}, expected string"
    assert problem([text], {"text": np.array([b"a"])}) == "input 'text': dtype |S1, expected string"
    for good in (np.array(["a", "b"], object), np.array(["a"]), np.array([], object), np.array([np.str_("a")], object)):
        InputCheck([text])({"text": good})
