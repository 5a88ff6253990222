"""Bindings on the CPU, where the code is the GPU's and the memory is the host's."""

import logging
import threading
from functools import partial

import numpy as np
import pytest
import small_models
from onnx import TensorProto, helper

import rocline
from rocline.errors import DeviceError, InputError, RoclineError
from rocline.runtime.onnx_file import ANY_RANK, UNKNOWN

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
W = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def matmul(tmp_path):
    with rocline.Session(small_models.save(small_models.matmul(), tmp_path), ["cpu"]) as session:
        yield session


@pytest.fixture
def successor(tmp_path):
    with rocline.Session(small_models.save(small_models.successor(), tmp_path), ["cpu"]) as session:
        yield session


@pytest.fixture
def nonzero(tmp_path):
    """The indices of what is not zero: y [1, any]."""
    proto = small_models.model(
        [helper.make_node("NonZero", ["x"], ["y"])], [("x", FLOAT, ["n"])], [("y", INT64, [1, None])]
    )
    with rocline.Session(small_models.save(proto, tmp_path), ["cpu"]) as session:
        yield session


def random(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def test_runs_on_what_its_inputs_hold_at_that_time(matmul):
    x = random(5, 4)
    wanted = matmul.run({"x": x})["y"]
    with matmul.bind({"x": x}) as bound:
        assert (list(bound.inputs), list(bound.outputs)) == (["x"], ["y"])
        assert bound.outputs["y"].shape == (5, 3)
        kept, x[:] = x.copy(), 0
        bound.run()
        assert np.array_equal(bound.outputs["y"].numpy(), wanted), "a NumPy array is copied when it is bound"
        bound.inputs["x"].copy_from(2 * kept, stream=matmul.stream)
        bound.run()
        bound.synchronize()
        assert np.array_equal(bound.outputs["y"].array, matmul.run({"x": 2 * kept})["y"])


def test_outputs_are_fed_to_inputs(successor):
    with successor.bind({"x": np.zeros(3, np.float32)}) as bound:
        for _ in range(10):
            bound.run()
            bound.inputs["x"].copy_from(bound.outputs["y"], stream=successor.stream)
        assert bound.inputs["x"].numpy().tolist() == [10, 10, 10]


def test_shapes_are_allocated(successor):
    with successor.bind({"x": (4,)}, {"y": (4,)}) as bound:
        bound.inputs["x"].fill(0, stream=successor.stream)
        bound.run()
        assert bound.outputs["y"].numpy().tolist() == [1, 1, 1, 1]


def test_what_the_model_fixes_is_allocated(tmp_path):
    proto = small_models.model(
        [helper.make_node("Sub", ["a", "b"], ["y"])],
        [("a", FLOAT, [2]), ("b", FLOAT, ["n"])],
        [("y", FLOAT, ["m"])],
    )
    with rocline.Session(small_models.save(proto, tmp_path), ["cpu"]) as session:
        with session.bind({"b": np.ones(2, np.float32)}, ["y"]) as bound:
            bound.inputs["a"].copy_from(np.array([1, 5], np.float32), stream=session.stream)
            bound.run()
            assert bound.outputs["y"].numpy().tolist() == [0, 4], "m follows from no input: allocated by the run"
        with pytest.raises(InputError, match="input 'b': missing"):
            session.bind()


def test_an_output_of_unknown_shape_is_new_after_each_run(nonzero):
    with nonzero.bind({"x": np.array([1, 0, 2, 0], np.float32)}) as bound:
        with pytest.raises(RoclineError, match=r"output 'y': ONNX Runtime allocates it in run\(\)"):
            bound.outputs["y"]
        bound.run()
        first = bound.outputs["y"]
        assert bound.outputs["y"] is first
        bound.inputs["x"].copy_from(np.array([0, 0, 0, 1], np.float32), stream=nonzero.stream)
        bound.run()
        assert bound.outputs["y"].numpy().tolist() == [[3]]
        assert first.numpy().tolist() == [[0, 2]], "who holds an output keeps it"
        bound.inputs["x"].fill(0, stream=nonzero.stream)
        bound.run()
        assert bound.outputs["y"].numpy().shape == (1, 0)


def test_another_tensor_may_be_bound(matmul, nonzero):
    with matmul.bind({"x": random(5, 4)}) as bound:
        bound.run()
        kept = bound.outputs["y"].pointer
        bound.set_inputs({"x": random(5, 4) * 2})
        assert bound.outputs["y"].pointer == kept
        bound.set_inputs({"x": random(2, 4)})
        bound.run()
        assert np.array_equal(bound.outputs["y"].numpy(), random(2, 4) @ W)
        for wrong, message in (({"x": random(2, 5)}, "input 'x': shape"), ([random(2, 4)], "inputs: list, expected")):
            with pytest.raises(InputError, match=message):
                bound.set_inputs(wrong)
        bound.run()
        assert np.array_equal(bound.outputs["y"].numpy(), random(2, 4) @ W), "what is refused changes nothing"


def test_a_growing_output_is_fed_back(tmp_path):
    proto = small_models.model(
        [helper.make_node("Concat", ["past", "new"], ["present"], axis=0)],
        [("past", FLOAT, ["p"]), ("new", FLOAT, [1])],
        [("present", FLOAT, ["total"])],
    )
    with rocline.Session(small_models.save(proto, tmp_path), ["cpu"]) as session:
        bound = session.bind({"past": (0,), "new": (1,)})
        for step in range(5):
            bound.inputs["new"].copy_from(np.array([step], np.float32), stream=session.stream)
            bound.run()
            bound.set_inputs({"past": bound.outputs["present"]})
        assert bound.inputs["past"].numpy().tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(RoclineError, match="output 'present': ONNX Runtime allocates it"):
            bound.outputs["present"]
        bound.run()
        assert bound.outputs["present"].numpy().tolist() == [0, 1, 2, 3, 4, 4]


def test_some_of_the_outputs(tmp_path):
    nodes = [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"])]
    proto = small_models.model(nodes, [("x", FLOAT, [1])], [(name, FLOAT, [1]) for name in "ab"])
    with rocline.Session(small_models.save(proto, tmp_path), ["cpu"]) as session:
        x = np.array([2], np.float32)
        for wanted in (["b"], {"b": None}, {"b": (1,)}):
            with session.bind({"x": x}, wanted) as bound:
                bound.run()
                assert {name: buffer.numpy().item() for name, buffer in bound.outputs.items()} == {"b": 2}
                assert len(bound.outputs) == 1
                with pytest.raises(InputError, match="output 'a': not bound, only b"):
                    bound.outputs["a"]


def test_an_initializer_may_be_bound(tmp_path):
    proto = small_models.matmul()
    proto.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [4, 3]))
    x = np.ones((1, 4), np.float32)
    with rocline.Session(small_models.save(proto, tmp_path), ["cpu"]) as session:
        with session.bind({"x": x}) as bound:
            assert list(bound.inputs) == ["x"]
            bound.run()
            assert bound.outputs["y"].numpy().tolist() == [[18, 22, 26]]
        with session.bind({"x": x, "w": np.ones((4, 3), np.float32)}) as bound:
            bound.run()
            assert bound.outputs["y"].numpy().tolist() == [[4, 4, 4]]


def test_ready_is_waited_for(successor):
    event = successor.stream.record()
    with successor.bind({"x": (1,)}, ready=event) as bound:
        bound.inputs["x"].fill(0, stream=successor.stream)
        bound.run(ready=[event])
        event.close()
        with pytest.raises(DeviceError, match="closed"):
            bound.run(ready=event)
        assert bound.outputs["y"].numpy().tolist() == [1]


@pytest.mark.parametrize("ready", [3, ["a"], [None]])
def test_only_events_can_be_ready(successor, ready):
    with successor.bind({"x": (1,)}) as bound:
        for use in (partial(successor.bind, {"x": (1,)}), bound.run, partial(bound.set_inputs, {})):
            with pytest.raises(InputError, match=r"ready: .*, expected an Event, or several"):
                use(ready=ready)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (np.zeros((5, 4), np.float32), None, "inputs: ndarray, expected a mapping from names to tensors"),
        ([(5, 4)], None, "inputs: list, expected a mapping from names to tensors"),
        ({"z": (1,)}, None, "input 'z': unknown, the model takes x"),
        ({}, None, "input 'x': missing"),
        ({"x": np.zeros((5, 3), np.float32)}, None, "input 'x': shape (5, 3), expected (batch, 4)"),
        ({"x": np.zeros((5, 4))}, None, "input 'x': dtype float64, expected float32"),
        ({"x": 3}, None, "input 'x': 3, expected a buffer, a tensor with __dlpack__, or a shape"),
        ({"x": (5, 4)}, {"z": None}, "output 'z': unknown, the model gives y"),
        ({"x": (5, 4)}, [], "outputs: [], expected names out of y, or buffers by name"),
        ({"x": (5, 4)}, "y", "outputs: 'y', expected names out of y, or buffers by name"),
        ({"x": (5, 4)}, {"y": (5, 4)}, "output 'y': float32 (5, 4), expected float32 (5, 3)"),
        ({"x": (5, 4)}, {"y": np.zeros((5, 3))}, "output 'y': float64 (5, 3), expected float32 (5, 3)"),
        ({"x": (5, 4)}, {"y": 3}, "output 'y': 3, expected a buffer"),
    ],
)
def test_what_is_refused(matmul, inputs, outputs, message):
    with pytest.raises(InputError) as caught:
        matmul.bind(inputs, outputs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_strings_are_not_bound(tmp_path):
    proto = small_models.model(
        [helper.make_node("Identity", ["s"], ["t"])],
        [("s", TensorProto.STRING, ["n"])],
        [("t", TensorProto.STRING, ["n"])],
    )
    with rocline.Session(small_models.save(proto, tmp_path), ["cpu"]) as session:
        with pytest.raises(
            InputError, match=r"'s': string cannot be held in a buffer, only run\(\) takes and gives it"
        ):
            session.bind({"s": np.array(["a"])})
        assert session.run({"s": np.array(["a"])})["t"].tolist() == ["a"]


def test_a_failing_run_is_one_line_and_no_end(tmp_path, capfd):
    proto = small_models.model(
        [helper.make_node("MatMul", ["a", "b"], ["y"], name="product")],
        [("a", FLOAT, ["m", "k"]), ("b", FLOAT, ["l", "n"])],
        [("y", FLOAT, ["m", "n"])],
    )
    with rocline.Session(small_models.save(proto, tmp_path), ["cpu"]) as session:
        bound = session.bind({"a": np.ones((2, 3), np.float32), "b": np.ones((2, 3), np.float32)})
        with pytest.raises(RoclineError) as caught:
            bound.run()
        assert (
            str(caught.value) == f"{tmp_path}/model.onnx: run failed: MatMul node 'product': MatMul dimension mismatch"
        )
        bound.set_inputs({"b": np.ones((3, 3), np.float32)})
        bound.run()
        assert bound.outputs["y"].numpy().tolist() == [[3, 3, 3], [3, 3, 3]]
    assert capfd.readouterr() == ("", "")


def test_a_shape_that_the_model_misnames_is_an_error(tmp_path):
    proto = small_models.model(
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)], [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])]
    )
    with (
        rocline.Session(small_models.save(proto, tmp_path), ["cpu"]) as session,
        session.bind({"x": np.ones(2, np.float32)}) as bound,
    ):
        with pytest.raises(RoclineError, match="run failed"):
            bound.run()
        assert session.run({"x": np.ones(2, np.float32)})["y"].shape == (4,)


def test_close(matmul):
    bound = matmul.bind({"x": random(5, 4)})
    bound.run()
    output = bound.outputs["y"]
    bound.close()
    bound.close()
    assert output.closed
    for use in (
        bound.run,
        bound.synchronize,
        lambda: bound.outputs["y"],
        lambda: bound.set_inputs({"x": random(5, 4)}),
    ):
        with pytest.raises(RoclineError, match="closed"):
            use()


def test_a_session_closes_its_bindings(tmp_path):
    session = rocline.Session(small_models.save(small_models.matmul(), tmp_path), ["cpu"])
    bound = session.bind({"x": random(5, 4)}, {"y": None})
    bound.run()
    output, own = bound.outputs["y"], session.device.allocate((1,), stream=session.stream)
    device = session.device
    session.close()
    session.close()
    assert (bound.closed, output.closed, own.closed, device.closed) == (True, True, True, True)
    for use in (bound.run, lambda: session.device, lambda: session.stream, session.bind):
        with pytest.raises(RoclineError, match="closed"):
            use()


def test_a_binding_keeps_its_session(tmp_path):
    path = small_models.save(small_models.matmul(), tmp_path)
    with rocline.Session(path, ["cpu"]).bind({"x": random(5, 4)}) as bound:
        bound.run()
        assert np.array_equal(bound.outputs["y"].numpy(), random(5, 4) @ W)


def test_threads_share_a_session(matmul):
    x = [random(rows, 4) for rows in (1, 2, 3, 4)]
    wrong = []

    def work(array):
        with matmul.bind({"x": array}) as bound:
            for _ in range(50):
                bound.run()
                if not np.array_equal(bound.outputs["y"].numpy(), matmul.run({"x": array})["y"]):
                    wrong.append(array.shape)

    threads = [threading.Thread(target=work, args=(array,)) for array in x]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_graphs_are_not_captured_on_a_cpu(tmp_path, caplog):
    path = small_models.save(small_models.matmul(), tmp_path)
    with rocline.Session(path, ["cpu"], options={"graph_capture": True}) as session:
        assert session.report.notes == ("graphs are not captured: it runs on the CPU",)
        with session.bind({"x": random(5, 4)}) as bound:
            assert (bound.captured, bound.uncaptured) == (False, "it runs on the CPU")
            bound.run()
            assert np.array_equal(bound.outputs["y"].numpy(), random(5, 4) @ W)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage() == f"{path}: runs are not captured as a graph: it runs on the CPU"
        with session.bind({"x": random(5, 4)}, capture=False) as bound:
            assert bound.uncaptured == "not asked for"
        assert len(caplog.records) == 1


def test_an_unknown_rank_is_taken(tmp_path):
    proto = small_models.model([helper.make_node("Relu", ["x"], ["y"])], [("x", FLOAT, None)], [("y", FLOAT, None)])
    with rocline.Session(small_models.save(proto, tmp_path), ["cpu"]) as session:
        assert session.inputs[0].shape == ANY_RANK
        assert UNKNOWN not in session.inputs[0].shape
        for shape in ((), (3,), (0,), (1, 2)):
            with session.bind({"x": np.ones(shape, np.float32)}) as bound:
                bound.run()
                assert bound.outputs["y"].numpy().shape == shape
