"""Closing at every line of what another thread does: the right answer or one line of error, and nothing else."""

import numpy as np
import pytest
import small_models
from interleaving import interleaved, use_locks

import rocline
from rocline.errors import RoclineError
from rocline.runtime.devices import open_device

X = np.ones((5, 4), np.float32)
Y = np.array([[18, 22, 26]] * 5, np.float32)


@pytest.fixture(autouse=True)
def locks(monkeypatch):
    use_locks(monkeypatch)


def right(outcome, wanted):
    """Whether an outcome is the wanted array, or the one line that says what is closed."""
    if isinstance(outcome, BaseException):
        return isinstance(outcome, RoclineError) and str(outcome).endswith("closed")
    return np.array_equal(outcome, wanted)


READINGS = {
    "numpy": lambda buffer: buffer.numpy(),
    "array": lambda buffer: buffer.array.copy(),
    "fetch": lambda buffer: buffer.fetch().numpy(),
    "dlpack": lambda buffer: np.from_dlpack(buffer).copy(),
    "view": lambda buffer: buffer.view(buffer.shape).numpy(),
    "close": lambda buffer: buffer.close() or Y,
}


def closed_and_used_again(buffer):
    """Closes a buffer, and gives its memory to another."""
    buffer.close()
    buffer.device.upload(np.zeros_like(Y), stream=buffer.stream)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("closing", [closed_and_used_again, lambda buffer: buffer.device.close()])
def test_a_buffer_is_closed_while_it_is_read(reading, closing):
    def make():
        device = open_device("cpu")
        return device.upload(Y, stream=device.create_stream())

    for buffer, read, closed in interleaved(make, READINGS[reading], closing):
        assert closed is None, closed
        assert right(read, Y), read
        buffer.device.close()
        del read
        statistics = buffer.device.pool.statistics
        assert (statistics.used, statistics.cached) == (0, 0)


def test_memory_is_asked_for_while_its_device_is_closed():
    def make():
        device = open_device("cpu")
        return device, device.create_stream()

    def upload(world):
        device, stream = world
        return device.upload(Y, stream=stream).numpy()

    for (device, _), got, closed in interleaved(make, upload, lambda world: world[0].close()):
        assert closed is None, closed
        assert right(got, Y), got
        statistics = device.pool.statistics
        assert (statistics.used, statistics.cached) == (0, 0)


@pytest.mark.parametrize("reading", READINGS)
def test_a_session_is_closed_while_its_outputs_are_read(reading, tmp_path):
    path = small_models.save(small_models.matmul(), tmp_path)

    def make():
        session = rocline.Session(path, ["cpu"], options={"threads": 1})
        bound = session.bind({"x": X}, {"y": None})
        bound.run()
        return session, bound

    def read(world):
        return READINGS[reading](world[1].outputs["y"])

    for _, got, closed in interleaved(make, read, lambda world: world[0].close()):
        assert closed is None, closed
        assert right(got, Y), got
