"""Closing while something else is under way: in another thread, or by someone else who has the same buffer."""

import threading

import numpy as np
import onnxruntime
import pytest
import small_models

import rocline
from rocline.errors import RoclineError

X = np.ones((5, 4), np.float32)
Y = np.array([[18, 22, 26]] * 5, np.float32)


@pytest.fixture
def session(tmp_path):
    with rocline.Session(small_models.save(small_models.matmul(), tmp_path), ["cpu"]) as session:
        yield session


def close_elsewhere(session):
    """Another thread closes the session; returns it once that is done, or has to wait."""
    thread = threading.Thread(target=session.close)
    thread.start()
    thread.join(0.2)
    return thread


class ClosedMeanwhile:
    """A tensor whose session another thread closes when it is asked for."""

    def __init__(self, session):
        self.session = session

    def __dlpack__(self, **arguments):
        self.closing = close_elsewhere(self.session)
        self.waits = self.closing.is_alive()
        return X.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return X.__dlpack_device__()


def test_closing_waits_for_a_binding_that_is_made(session):
    tensor = ClosedMeanwhile(session)
    bound = session.bind({"x": tensor})
    tensor.closing.join(60)
    assert tensor.waits
    assert bound.closed, "a binding that the session does not know would use it after its end"


def test_closing_waits_for_inputs_that_are_bound(session):
    tensor = ClosedMeanwhile(session)
    bound = session.bind({"x": X})
    bound.set_inputs({"x": tensor})
    tensor.closing.join(60)
    assert (tensor.waits, bound.closed) == (True, True)


def test_a_run_that_comes_too_late_says_so(session, monkeypatch):
    run = onnxruntime.InferenceSession.run

    def late(*arguments):
        close_elsewhere(session).join(60)
        return run(*arguments)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", late)
    with pytest.raises(RoclineError, match="the session is closed"):
        session.run({"x": X})


def test_two_threads_close_and_others_share_the_stream_on(session):
    """Each session leaves what it shares once, whoever closes it how often."""
    lane = session._open_lane()
    with lane.held():
        closing = [threading.Thread(target=session.close) for _ in range(4)]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(60)
        assert not lane.stream.closed
    assert lane.stream.closed


def test_threads_use_what_is_closed(tmp_path):
    path, wrong = small_models.save(small_models.matmul(), tmp_path), []

    def work(action):
        try:
            while True:
                assert np.array_equal(action(), Y)
        except RoclineError as error:
            if not str(error).endswith("closed"):
                wrong.append(error)
        except BaseException as error:
            wrong.append(error)

    for _ in range(20):
        session = rocline.Session(path, ["cpu"], options={"threads": 1})

        def run(session=session):
            return session.run({"x": X})["y"]

        def bind(session=session, outputs=None):
            with session.bind({"x": X}, outputs) as bound:
                bound.run()
                bound.synchronize()
                bound.set_inputs({"x": X})
            return Y

        actions = run, bind, lambda: bind(outputs={"y": None})
        threads = [threading.Thread(target=work, args=(action,)) for action in actions]
        for thread in threads:
            thread.start()
        session.close()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    assert wrong == []


def test_what_a_binding_lends_may_be_closed(session):
    with session.bind({"x": X}) as bound:
        pointer = bound.outputs["y"].pointer
        bound.inputs["x"].close()
        with bound.outputs["y"]:
            pass
        others = [session.device.allocate(shape, np.float32, stream=session.stream) for shape in ((5, 4), (5, 3))]
        for other in others:
            other.fill(0, stream=session.stream)
        bound.run()
        assert np.array_equal(bound.outputs["y"].numpy(), Y)
        assert bound.outputs["y"].pointer == pointer
        assert not any(other.numpy().any() for other in others), "its memory went to nobody else"


def test_what_is_not_bound_is_not_in_it(session):
    with session.bind({"x": X}, {"y": None}) as bound:
        assert "x" in bound.inputs
        assert "y" in bound.outputs, "also where it does not exist yet"
        assert "z" not in bound.inputs
        assert "z" not in bound.outputs
        with pytest.raises(rocline.InputError, match="input 'z': not bound, only x"):
            bound.inputs["z"]
    for buffers in (bound.inputs, bound.outputs):
        with pytest.raises(RoclineError, match="closed"):
            buffers[next(iter(buffers))]
