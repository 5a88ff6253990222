"""Programs on the order of work: of several streams, sessions and threads."""

import contextlib
import threading

import numpy as np
import session_models as models
from session_bench import both, close_to, program, random

import rocline
from rocline import RoclineError
from rocline.runtime.devices.driver import Direction


@program
def outputs_dropped_while_another_stream_reads(bench):
    """ONNX Runtime's arena hands a dropped output's memory to the next run."""
    session, cpu = both(bench, models.reshape())
    device, shape = session.device, np.array([8, 4])
    other = device.create_stream()
    xs = [random(4, 8, seed=seed) for seed in range(5)]
    results = []
    with session.bind({"x": (4, 8), "shape": shape}) as bound:
        for x in xs:
            bound.inputs["x"].copy_from(x, stream=session.stream)
            bound.run()
            results.append(device.allocate((8, 4), np.float32, stream=other))
            results[-1].copy_from(bound.outputs["y"], stream=other)
    for x, result in zip(xs, results, strict=True):
        close_to(result.numpy(), cpu.run({"x": x, "shape": shape})["y"])


@program
def every_ordering_the_interface_has(bench):
    """Inputs written and outputs read on any stream, the null stream too, with no wait of the caller's."""
    session, cpu = both(bench, models.chain())
    device = session.device
    streams = [session.stream, device.create_stream(), device.foreign_stream(0), device.create_stream()]
    with session.bind({"x": (4, 32)}) as bound:
        for turn in range(8):
            x = random(4, 32, seed=turn)
            bound.inputs["x"].copy_from(x, stream=streams[turn % 4])
            bound.run()
            close_to(bound.outputs["y"].numpy(stream=streams[(turn + 1) % 4]), cpu.run({"x": x})["y"])
            close_to(bound.outputs["y"].numpy(), cpu.run({"x": x})["y"])
    for name in ("user_compute_stream", "has_user_compute_stream", "do_copy_in_default_stream"):
        with contextlib.suppress(rocline.InputError):
            bench.session(models.chain(), options={name: 0})
            raise AssertionError(f"{name} was taken")


@program
def a_foreign_producer(bench):
    """Memory and a stream that no buffer knows of: ordered by an event before the run, and by one after it."""
    session, cpu = both(bench, models.chain())
    device, driver = session.device, session.device.driver
    foreign, event = driver.create_stream(0), driver.create_event(0)
    source, target = (device.upload(random(4, 32, seed=seed), stream=session.stream) for seed in (1, 2))
    with session.bind({"x": target}) as bound:
        bound.run()
        bound.synchronize()
        driver.copy(target.pointer, source.pointer, source.nbytes, Direction.ON_DEVICE, foreign)
        driver.record_event(event, foreign)
        with device.foreign_event(event) as ready:
            bound.run(ready=ready)
        done = session.stream.record()
        driver.wait_event(foreign, done.handle)
        driver.fill(target.pointer, 0, target.nbytes, foreign)
        close_to(bound.outputs["y"].numpy(), cpu.run({"x": random(4, 32, seed=1)})["y"])
    driver.synchronize_stream(foreign)
    driver.destroy_event(event)
    driver.destroy_stream(foreign)


@program
def sessions_with_streams_of_their_own(bench):
    """One's output is the other's input, in the same memory; nobody waits on the host."""
    first, cpu = both(bench, models.matmul())
    second = bench.session(models.matmul())
    assert first.stream is not second.stream
    x = random(3, 32)
    with first.bind({"x": x}) as one, second.bind({"x": one.outputs["y"]}, {"y": one.inputs["x"]}) as two:
        assert two.inputs["x"].pointer == one.outputs["y"].pointer
        for _ in range(4):
            one.run()
            two.run()
        got = one.inputs["x"].numpy()
    for _ in range(8):
        x = cpu.run({"x": x})["y"]
    close_to(got, x)


@program
def sessions_share_a_stream_to_the_last(bench):
    path = bench.save(models.matmul())
    first, cpu = bench.session(path), bench.cpu(path)
    second, stream = bench.session(path, stream=first.stream), first.stream
    with second.bind({"x": random(3, 32)}) as bound:
        first.close()
        assert not stream.closed
        bound.run()
        close_to(bound.outputs["y"].numpy(), cpu.run({"x": random(3, 32)})["y"])
    second.close()
    assert stream.closed


@program
def a_stream_of_the_callers(bench):
    path = bench.save(models.matmul())
    session, cpu = bench.session(path), bench.cpu(path)
    with session.device.create_stream() as stream:
        other = bench.session(path, stream=stream)
        bound = other.bind({"x": random(3, 32)})
        bound.run()
        event = stream.record()
        other.close()
        assert event.done, "a session waits for what it has queued before it goes"
        assert bound.closed
        assert not stream.closed
        last = bench.session(path, stream=stream)
        close_to(last.run({"x": random(3, 32)})["y"], cpu.run({"x": random(3, 32)})["y"])
        bound = last.bind({"x": random(3, 32)})
    for use in (bound.run, bound.synchronize):
        with contextlib.suppress(RoclineError):
            use()
            raise AssertionError("the stream is closed")
    with contextlib.suppress(rocline.InputError):
        bench.session(path, stream=stream)
        raise AssertionError("a closed stream was taken")


@program
def threads_share_a_session(bench):
    session, cpu = both(bench, models.chain())
    failures = []

    def work(number):
        try:
            with session.bind({"x": (number, 32)}) as bound:
                for turn in range(6):
                    x = random(number, 32, seed=turn)
                    bound.inputs["x"].copy_from(x, stream=session.stream)
                    bound.run()
                    wanted = cpu.run({"x": x})["y"]
                    close_to(bound.outputs["y"].numpy(), wanted)
                    close_to(session.run({"x": x})["y"], wanted)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def the_copy_on_another_stream(bench):
    """The bug that this project began with; not among the programs, since it is to be found."""
    product = bench.session(models.matmul())
    scale = bench.session(models.add_scale(), stream=product)
    driver, other = product.device.driver, product.device.create_stream()
    x = random(3, 32)
    with product.bind({"x": x}) as first, scale.bind({"a": (3, 32), "b": x}) as second:
        for _ in range(3):
            first.run()
            source, target = first.outputs["y"], second.inputs["a"]
            driver.copy(target.pointer, source.pointer, source.nbytes, Direction.ON_DEVICE, other.handle)
            second.run()
        second.synchronize()
        other.synchronize()
