"""Programs on runs captured as graphs."""

import contextlib
import threading

import numpy as np
import session_models as models
from session_bench import close_to, decode, program, random

import rocline
from rocline import RoclineError
from rocline.runtime.devices.gpu import GpuDriver


@program
def captured_runs(bench):
    """Replayed on changing inputs, and one that updates its input; beside runs that are not captured."""
    path = bench.save(models.chain())
    session, cpu = bench.session(path, options={"graph_capture": True}), bench.cpu(path)
    x = random(4, 32)
    with session.bind({"x": x}) as bound, session.bind({"x": x}, capture=False) as eager:
        for turn in range(5):
            bound.inputs["x"].copy_from(x + turn, stream=session.stream)
            bound.run()
            eager.run()
            wanted = cpu.run({"x": x + turn})["y"]
            close_to(bound.outputs["y"].numpy(), wanted)
            close_to(session.run({"x": x + turn})["y"], wanted)
        assert bound.captured, bound.uncaptured
        close_to(eager.outputs["y"].numpy(), cpu.run({"x": x})["y"])
        with contextlib.suppress(RoclineError):
            bound.set_inputs({"x": x})
            raise AssertionError("a captured input was rebound")
    ring = session.device.upload(x, stream=session.stream)
    with session.bind({"x": ring}, {"y": ring}) as bound:
        for _ in range(4):
            bound.run()
            x = cpu.run({"x": x})["y"]
        assert bound.captured, bound.uncaptured
        close_to(ring.numpy(), x)


@program
def a_captured_graph_leaves_outputs_alone(bench):
    """What a run gave stays as it is while a graph, which borrowed the same memory for its own sake, is replayed."""
    path = bench.save(models.chain())
    session, cpu = bench.session(path, options={"graph_capture": True}), bench.cpu(path)
    x, kept = random(4, 32), []
    with session.bind({"x": random(64, 32)}) as bound, session.bind({"x": x}, {"y": None}, capture=False) as eager:
        for turn in range(3):
            bound.run()
            eager.inputs["x"].copy_from(x + turn, stream=session.stream)
            eager.run()
            kept.append(eager.outputs["y"])
        bound.run()
        assert bound.captured, bound.uncaptured
        for turn, got in enumerate(kept):
            close_to(got.numpy(), cpu.run({"x": x + turn})["y"])


@program
def captured_bindings_are_dropped(bench):
    """Their graphs are freed when they are done, by the runs of others or with the session."""
    session = bench.session(models.chain(), options={"graph_capture": True})
    x = random(4, 32)
    with session.bind({"x": x}, capture=False) as other:
        for _ in range(3):
            dropped = session.bind({"x": x})
            for _ in range(3):
                dropped.run()
            assert dropped.captured, dropped.uncaptured
            del dropped
            other.run()
            other.synchronize()
    session.bind({"x": x}).run()


@program
def captured_decoding(bench):
    path = bench.save(models.decoder())
    session = bench.session(path, options={"graph_capture": True})
    close_to(decode(session), decode(bench.cpu(path)))


@program
def captures_that_fail(bench):
    """Each falls back to what is right, with the reason."""
    path = bench.save(models.chain())
    x = random(4, 32)
    wanted = bench.cpu(path).run({"x": x})["y"]
    for name, replacement, reason in (
        ("launch_graph", lambda self, graph, stream: None, "differ from the eager run's"),
        ("end_capture", _fail_to_end, "planted"),
    ):
        session = bench.session(path, options={"graph_capture": True})
        with session.bind({"x": x}) as bound:
            before = getattr(GpuDriver, name)
            setattr(GpuDriver, name, replacement)
            try:
                bound.run()
            finally:
                setattr(GpuDriver, name, before)
            close_to(bound.outputs["y"].numpy(), wanted)
            assert not bound.captured
            assert reason in bound.uncaptured, bound.uncaptured
            bound.run()
            close_to(bound.outputs["y"].numpy(), wanted)
    session = bench.session(path)
    with session.bind({"x": x}, capture=True) as bound:
        assert "opened without options={'graph_capture': True}" in bound.uncaptured
    session = bench.session(models.reshape(), options={"graph_capture": True})
    with session.bind({"x": (4, 8), "shape": np.array([8, 4])}) as bound:
        assert bound.uncaptured == "the model reads shape on the host", bound.uncaptured


def _fail_to_end(self, stream):
    self.abandon_capture(stream)
    raise rocline.DeviceError("planted")


@program
def a_capture_that_is_interrupted(bench):
    """Ctrl-C as soon as it has begun: the stream is no longer captured, and the session goes on."""
    path = bench.save(models.chain())
    session, x = bench.session(path, options={"graph_capture": True}), random(4, 32)
    before = GpuDriver.begin_capture

    def interrupted(self, stream):
        before(self, stream)
        raise KeyboardInterrupt

    with session.bind({"x": x}) as bound:
        GpuDriver.begin_capture = interrupted
        try:
            bound.run()
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("the interrupt was swallowed")
        finally:
            GpuDriver.begin_capture = before
        bound.run()
        close_to(bound.outputs["y"].numpy(), bench.cpu(path).run({"x": x})["y"])


@program
def a_wait_of_another_thread(bench):
    """It puts the capture off until the next run, or waits for its end."""
    path = bench.save(models.chain())
    session, cpu = bench.session(path, options={"graph_capture": True}), bench.cpu(path)
    x, waiting, go_on = random(4, 32), threading.Event(), threading.Event()
    wanted = cpu.run({"x": x})["y"]
    wait, begin = GpuDriver.synchronize_stream, GpuDriver.begin_capture
    waiters = [threading.Thread(target=session.stream.synchronize) for _ in range(2)]

    def slow_wait(self, stream):
        if threading.current_thread() is waiters[0]:
            waiting.set()
            go_on.wait(60)
        wait(self, stream)

    def begin_while_another_waits(self, stream):
        begin(self, stream)
        waiters[1].start()
        waiters[1].join(0.2)
        assert waiters[1].is_alive()

    GpuDriver.synchronize_stream, GpuDriver.begin_capture = slow_wait, begin_while_another_waits
    try:
        with session.bind({"x": x}) as bound:
            waiters[0].start()
            assert waiting.wait(60)
            bound.run()
            assert not bound.captured
            assert not bound.uncaptured
            go_on.set()
            waiters[0].join(60)
            bound.inputs["x"].copy_from(x, stream=session.stream)
            bound.run()
            assert bound.captured, bound.uncaptured
            close_to(bound.outputs["y"].numpy(), wanted)
            waiters[1].join(60)
    finally:
        GpuDriver.synchronize_stream, GpuDriver.begin_capture = wait, begin


@program
def threads_run_while_another_captures(bench):
    """Runs, copies and allocations of other threads keep out of a graph, and do not break it."""
    path = bench.save(models.chain())
    session, cpu = bench.session(path, options={"graph_capture": True}), bench.cpu(path)
    other = bench.session(path, stream=session)
    x, failures, done = random(4, 32), [], threading.Event()
    wanted = cpu.run({"x": x})["y"]

    def work(turn=0):
        try:
            while not done.is_set():
                turn += 1
                close_to(other.run({"x": x})["y"], wanted)
                session.device.allocate((turn << 12,), stream=session.stream).close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            with session.bind({"x": x}) as bound:
                for _ in range(3):
                    bound.run()
                    close_to(bound.outputs["y"].numpy(), wanted)
                assert bound.captured, bound.uncaptured
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures, failures
