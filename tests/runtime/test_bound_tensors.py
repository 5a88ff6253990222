"""The memory of a binding: whose it is, what may share it, and what is refused."""

import numpy as np
import pytest
import small_models
from onnx import TensorProto, helper

import rocline
from rocline.errors import InputError
from rocline.runtime.devices import open_device

FLOAT = TensorProto.FLOAT


@pytest.fixture
def successor(tmp_path):
    with rocline.Session(small_models.save(small_models.successor(), tmp_path), ["cpu"]) as session:
        yield session


class Exporter:
    """Something with DLPack's protocol that is no NumPy array."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **arguments):
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.fixture
def negated(tmp_path):
    with rocline.Session(small_models.save(small_models.passed_on(), tmp_path), ["cpu"]) as session:
        yield session


def test_one_buffer_is_input_and_output(successor):
    state = successor.device.allocate((3,), np.float32, stream=successor.stream, zero=True)
    with successor.bind({"x": state}, {"y": state}) as bound, successor.bind({"x": state}, {"y": state}) as second:
        assert bound.inputs["x"].pointer == bound.outputs["y"].pointer == state.pointer
        for _ in range(5):
            bound.run()
            second.run()
    assert state.numpy().tolist() == [10, 10, 10], "the caller's buffer outlives the bindings"


def test_memory_with_dlpack_is_used_as_it_is(successor):
    x, y = np.zeros(3, np.float32), np.empty(3, np.float32)
    with successor.bind({"x": Exporter(x)}, {"y": y}) as bound:
        assert bound.inputs["x"].pointer == x.ctypes.data
        x[:] = 7
        bound.run()
        assert y.tolist() == [8, 8, 8]
        shared = np.from_dlpack(bound.outputs["y"])
        assert shared.ctypes.data == y.ctypes.data


@pytest.mark.parametrize("wanted", [None, ["x"], {"x": None, "y": None}, {"x": (2,)}])
def test_an_output_that_is_an_input_is_a_copy_of_it(negated, wanted):
    with negated.bind({"x": (2,)}, wanted) as bound:
        for value in (1, 2):
            bound.inputs["x"].copy_from(np.full(2, value, np.float32), stream=negated.stream)
            bound.run()
            assert bound.outputs["x"].pointer != bound.inputs["x"].pointer
            expected = {"x": [value] * 2, "y": [-value] * 2}
            assert {name: buffer.numpy().tolist() for name, buffer in bound.outputs.items()} == {
                name: expected[name] for name in bound.outputs
            }


def test_an_output_that_is_an_input_may_share_memory_with_that_alone(negated):
    x = np.array([1, 2], np.float32)
    for other in (None, x):
        with negated.bind({"x": Exporter(x)}, {"x": x} if other is None else {"x": (2,), "y": other}) as bound:
            bound.run()
            assert bound.outputs["x"].numpy().tolist() == [1, 2], "also where the input is updated in place"
    assert x.tolist() == [-1, -2]


def test_a_buffer_that_does_not_fit_other_inputs_is_refused(successor):
    y = np.zeros(3, np.float32)
    with successor.bind({"x": np.ones(3, np.float32)}, {"y": y}) as bound:
        with pytest.raises(InputError, match=r"output 'y': float32 \(3,\), expected float32 \(2,\)"):
            bound.set_inputs({"x": np.zeros(2, np.float32)})
        bound.run()
        assert y.tolist() == [2, 2, 2], "what is refused changes nothing"


def test_overlaps_are_refused(successor, tmp_path):
    room = successor.device.allocate((8,), np.float32, stream=successor.stream)
    whole = room.array
    with pytest.raises(InputError, match="output 'y': shares part of its memory with input 'x', expected all or none"):
        successor.bind({"x": Exporter(whole[:4])}, {"y": whole[2:6]})
    with successor.bind({"x": Exporter(whole[:4])}, {"y": whole[4:]}) as bound:
        bound.run()
    nodes = [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"])]
    proto = small_models.model(nodes, [("x", FLOAT, [8])], [(name, FLOAT, [8]) for name in "ab"])
    with (
        rocline.Session(small_models.save(proto, tmp_path / "two"), ["cpu"]) as session,
        pytest.raises(InputError, match="outputs 'a' and 'b': bound to the same memory"),
    ):
        session.bind({"x": (8,)}, {"a": room, "b": room})


def test_a_closed_buffer_stays_bound(successor):
    state = successor.device.allocate((2,), np.float32, stream=successor.stream, zero=True)
    with successor.bind({"x": state}) as bound:
        state.close()
        with successor.device.allocate((2,), np.float32, stream=successor.stream) as other:
            other.fill(0xFF, stream=successor.stream)
            bound.run()
        assert bound.outputs["y"].numpy().tolist() == [1, 1], "its memory went to nobody else"


def test_a_buffer_elsewhere_is_refused(successor, monkeypatch):
    with open_device("cpu") as device:
        monkeypatch.setattr(device, "device_id", 1)
        state = device.allocate((2,), np.float32, stream=device.create_stream())
        with pytest.raises(InputError, match=r"input 'x': buffer float32 \(2,\) on cpu:1, expected a buffer on cpu:0"):
            successor.bind({"x": state})
