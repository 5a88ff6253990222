"""Programs on how sessions and bindings end: closed while other threads use them, dropped, or with the process."""

import gc
import os
import signal
import threading
import traceback

import numpy as np
import onnxruntime
import session_models as models
from session_bench import both, close_to, program, random

import rocline
from rocline import RoclineError
from rocline.runtime.devices.host_copy import HostCopy


def replaced(owner, name, replacement):
    """Puts ``replacement(original, self, *arguments)`` in a method's place; returns what undoes that."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *arguments, **named: replacement(original, *arguments, **named))
    return lambda: setattr(owner, name, original)


@program
def closed_while_a_run_waits_for_its_outputs(bench):
    """The run has its outputs all the same; the stream and the memory that it reads go when it has them."""
    session, cpu = both(bench, models.chain())
    stream, x = session.stream, random(4, 32)

    def view(original, copy):
        thread = threading.Thread(target=session.close)
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), "closing waits for the run's reader"
        return original(copy)

    undo = replaced(HostCopy, "view", view)
    try:
        got = session.run({"x": x})["y"]
    finally:
        undo()
    close_to(got, cpu.run({"x": x})["y"])
    assert stream.closed
    try:
        session.run({"x": x})
    except RoclineError as error:
        assert str(error).endswith("the session is closed"), error
    else:
        raise AssertionError("a closed session ran")


@program
def closed_while_onnxruntime_runs(bench):
    """A run that ONNX Runtime copies and waits for by itself, as it does with strings, has begun: closing waits."""
    session, cpu = both(bench, models.chain_and_strings())
    feeds, still_open = {"x": random(3, 32), "s": np.array(["a"])}, []
    thread = threading.Thread(target=session.close)

    def run(original, *arguments):
        thread.start()
        thread.join(0.2)
        still_open.append(not session.stream.closed)
        return original(*arguments)

    stream = session.stream
    undo = replaced(onnxruntime.InferenceSession, "run", run)
    try:
        got = session.run(feeds)
    finally:
        undo()
        thread.join(60)
    assert still_open == [True]
    assert stream.closed
    close_to(got["y"], cpu.run(feeds)["y"])


@program
def closed_while_threads_use_it(bench):
    """Each of them is right until then, and told afterwards."""
    path = bench.save(models.chain())
    x = random(4, 32)
    wanted = bench.cpu(path).run({"x": x})["y"]
    wrong = []

    def work(action):
        try:
            while True:
                action()
        except RoclineError as error:
            if not str(error).endswith("closed"):
                wrong.append(error)
        except BaseException as error:
            wrong.append(error)

    for _ in range(3):
        session = bench.session(path)

        def run(session=session):
            close_to(session.run({"x": x})["y"], wanted)

        def bind(session=session):
            with session.bind({"x": x}, {"y": None}) as bound:
                bound.run()
                bound.synchronize()
                bound.set_inputs({"x": x})

        threads = [threading.Thread(target=work, args=(action,)) for action in (run, run, bind, bind)]
        for thread in threads:
            thread.start()
        run()
        closing = [threading.Thread(target=session.close) for _ in range(2)]
        for thread in closing:
            thread.start()
        for thread in (*threads, *closing):
            thread.join()
    assert not wrong, wrong


@program
def what_a_binding_lends_is_closed(bench):
    """A run goes on with the same memory, which nobody else got."""
    session, cpu = both(bench, models.chain())
    x = random(4, 32)
    with session.bind({"x": x}) as bound:
        bound.run()
        bound.synchronize()
        bound.inputs["x"].close()
        with bound.outputs["y"] as y:
            pointer = y.pointer
        others = [session.device.allocate((4, 32), np.float32, stream=session.stream, zero=True) for _ in range(2)]
        bound.run()
        close_to(bound.outputs["y"].numpy(), cpu.run({"x": x})["y"])
        assert bound.outputs["y"].pointer == pointer
        assert not any(other.numpy().any() for other in others)


@program
def sessions_in_a_cycle_of_garbage(bench):
    for proto, inputs in ((models.chain(), {"x": (4, 32)}), (models.reshape(), {"x": (4, 8), "shape": (2,)})):
        session = rocline.Session(bench.save(proto), [bench.provider.name], strict=True)
        bound = session.bind(inputs)
        if "shape" in bound.inputs:
            bound.inputs["shape"].copy_from(np.array([8, 4]), stream=session.stream)
        bound.run()
        cycle = [bound.outputs["y"], bound, session]
        cycle.append(cycle)
        del session, bound, cycle
        gc.collect()


@program
def sessions_are_left_open(bench):
    """The process ends with work queued; what is open is closed."""
    session = rocline.Session(bench.save(models.reshape()), [bench.provider.name], strict=True)
    bound = session.bind({"x": (4, 8), "shape": np.array([8, 4])})
    bound.run()
    bench.left = [session, bound, bound.outputs["y"]]


def said(use):
    try:
        use()
    except RoclineError as error:
        return str(error)
    return ""


@program
def a_forked_process_leaves_sessions_alone(bench):
    """With runs queued, and a turn that another thread had: each use says so at once, and the end waits for nothing."""
    session, cpu = both(bench, models.chain())
    x, taken, done = random(4, 32), threading.Event(), threading.Event()

    def hold():
        with session.held():
            taken.set()
            done.wait()

    with session.bind({"x": x}) as bound:
        for _ in range(20):
            bound.run()
        y = bound.outputs["y"]
        thread = threading.Thread(target=hold)
        thread.start()
        taken.wait()
        child = os.fork()
        if not child:
            # Ends a child that hangs, in its own uses or in ONNX Runtime's destructor.
            signal.alarm(60)
            status = 1
            try:
                for use in (bound.run, bound.synchronize, y.numpy, lambda: session.run({"x": x}), session.bind):
                    assert "before this process was forked" in said(use), use
                bound.close()
                bench.close()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        done.set()
        thread.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        close_to(y.numpy(), cpu.run({"x": x})["y"])


@program
def sessions_are_dropped(bench):
    session = rocline.Session(bench.save(models.chain()), [bench.provider.name], strict=True)
    bound = session.bind({"x": random(4, 32)})
    bound.run()
    del session, bound
