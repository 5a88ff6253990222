"""A capture is alone: runs, new sessions and allocations of other threads wait for its end, and go on then."""

import gc
import signal
import threading
from contextlib import suppress

import numpy as np
import pytest
import small_models

import rocline
from rocline.runtime.devices import open_device
from rocline.runtime.turns import alone, new_turn


@pytest.fixture
def device():
    with open_device("cpu") as device:
        yield device


def waits(action, device):
    """Whether another thread's ``action`` is held up for as long as this one is alone."""
    done = threading.Event()
    thread = threading.Thread(target=lambda: (action(), done.set()))
    with alone(device.driver):
        thread.start()
        held_up = not done.wait(0.2)
    thread.join(60)
    assert done.is_set(), "it goes on afterwards"
    return held_up


def test_runs_wait(device):
    turn = new_turn()

    def run():
        with turn:
            pass

    assert waits(run, device)


def test_allocations_wait(device):
    stream = device.create_stream()
    assert waits(lambda: device.allocate((1,), stream=stream).close(), device)


def test_copies_wait(device):
    """One on the stream that is captured would become part of the graph, and be done again at each launch."""
    stream = device.create_stream()
    source, target = device.upload(np.arange(4.0), stream=stream), device.allocate((4,), np.float64, stream=stream)
    assert waits(lambda: target.copy_from(source, stream=stream), device)


def test_new_sessions_wait(device, tmp_path):
    path = small_models.save(small_models.matmul(), tmp_path)
    assert waits(lambda: rocline.Session(path, ["cpu"]).close(), device)


def test_placement_waits(device, tmp_path):
    """It creates a session of its own, after which it is known."""
    with rocline.Session(small_models.save(small_models.matmul(), tmp_path), ["cpu"]) as session:
        assert waits(lambda: session.report.placement, device)
        assert session.report.placement == {"CPUExecutionProvider": {"MatMul": 1}}


def test_a_run_that_began_is_waited_for(device):
    turn, order = new_turn(), []
    running, may_end = threading.Event(), threading.Event()

    def run():
        with turn:
            running.set()
            may_end.wait(60)
            order.append("run")

    def capture():
        with alone(device.driver):
            order.append("capture")

    threads = [threading.Thread(target=run), threading.Thread(target=capture)]
    threads[0].start()
    assert running.wait(60)
    threads[1].start()
    threads[1].join(0.2)
    assert order == []
    may_end.set()
    for thread in threads:
        thread.join(60)
    assert order == ["run", "capture"]


def test_two_captures_take_turns(device):
    turns, inside, most = [new_turn() for _ in range(5)], [], []

    def capture():
        for _ in range(50):
            with alone(device.driver):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=capture) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert (len(most), max(most)) == (150, 1)
    del turns


def test_who_has_a_turn_may_take_another_while_a_capture_waits_for_the_first(device):
    """As the collector does where it closes a session in the midst of another's run."""
    taken_first, taken_last = sorted((new_turn(), new_turn()), key=id)
    captured = []

    def capture():
        with alone(device.driver):
            captured.append(True)

    thread = threading.Thread(target=capture)
    with taken_last:
        thread.start()
        while thread.is_alive() and taken_first.acquire(blocking=False):
            taken_first.release()
        assert taken_first.acquire(timeout=60)
        taken_first.release()
        assert captured == []
    thread.join(60)
    assert captured == [True]


def test_waits_for_a_stream_wait(device):
    """One on the stream that is captured would break that."""
    assert waits(device.create_stream().synchronize, device)


def test_the_capturing_thread_may_allocate(device):
    stream = device.create_stream()
    with alone(device.driver):
        device.allocate((1,), stream=stream).close()


def test_nothing_is_collected_meanwhile(device):
    """A session in a cycle of garbage would be closed by the thread that holds its turn, and wait for itself."""
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with alone(device.driver):
                assert not gc.isenabled()
            assert gc.isenabled() == enabled
        finally:
            gc.enable()


def test_a_capture_that_waited_for_another_is_not_collected_either(device):
    off = []

    def capture():
        with alone(device.driver):
            off.append(not gc.isenabled())

    thread = threading.Thread(target=capture)
    with alone(device.driver):
        thread.start()
        thread.join(0.2)
        assert off == []
    thread.join(60)
    assert off == [True]
    assert gc.isenabled()


def test_an_interrupt_leaves_no_turn_taken():
    """Ctrl-C may come at any moment."""

    class Interrupt(BaseException):
        pass

    def interrupt(*_):
        raise Interrupt

    def free():
        found = turn.acquire(timeout=60)
        free_again.append(found)
        if found:
            turn.release()

    turn, free_again = new_turn(), []
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(500):
            with suppress(Interrupt):
                signal.setitimer(signal.ITIMER_REAL, 1e-5 * (1 + number % 20))
                while True:
                    with turn:
                        pass
            thread = threading.Thread(target=free)
            thread.start()
            thread.join()
            assert free_again[-1], "it was never given back"
    finally:
        signal.signal(signal.SIGALRM, before)
