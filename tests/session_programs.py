"""Programs on sessions' public interface, for the simulated HIP device or a real GPU.

    session_programs.py PROVIDER [--without EDGE] [PROGRAM ...]

Each compares its values with the CPU's. Where an edge is missing, a race detector tells, since values are wrong in some
runs only: `--without` takes one of the runtime's edges out, to show that it is needed.
"""

import argparse
import contextlib
import ctypes
import tempfile
import threading
from collections import deque
from pathlib import Path

import ml_dtypes
import numpy as np
import session_models as models
import small_models
from onnx import helper

import rocline
from rocline import RoclineError
from rocline.runtime.devices.driver import Direction
from rocline.runtime.devices.gpu import GpuDriver
from rocline.runtime.io_binding import Binding
from rocline.runtime.ort_binding import Arena
from rocline.runtime.providers import PROVIDERS, Provider

PROGRAMS = {}
# A CUDA provider rounds a product's factors to 10 bits unless told otherwise.
EXACT = {"cuda": {"use_tf32": False}}
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 2e-3}


def program(function):
    PROGRAMS[function.__name__] = function
    return function


class Bench:
    """Makes sessions on one provider, and says what the CPU gives.

    Args:
        provider: short name.
        folder: where models are written.
    """

    def __init__(self, provider, folder):
        self.provider, self.folder, self._count = PROVIDERS[provider], folder, 0
        self._open = contextlib.ExitStack()

    def save(self, proto):
        self._count += 1
        return small_models.save(proto, self.folder, f"{self._count}.onnx")

    def session(self, proto, **arguments):
        path = proto if isinstance(proto, Path) else self.save(proto)
        options = {**EXACT.get(self.provider.name, {}), **arguments.pop("options", {})}
        session = rocline.Session(path, [self.provider.name], strict=True, options=options, **arguments)
        self._open.enter_context(session)
        assert session.report.active[0] == self.provider.ort_name, session.report
        assert session.device.kind == self.provider.backend
        return session

    def cpu(self, proto):
        return self._open.enter_context(
            rocline.Session(proto if isinstance(proto, Path) else self.save(proto), ["cpu"])
        )

    def close(self):
        self._open.close()


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def close_to(got, wanted):
    tolerance = TOLERANCE.get(wanted.dtype.name, 0)
    np.testing.assert_allclose(got.astype(np.float64), wanted.astype(np.float64), rtol=tolerance, atol=tolerance)


def both(bench, proto):
    path = bench.save(proto)
    return bench.session(path), bench.cpu(path)


@program
def plain_run(bench):
    session, cpu = both(bench, models.chain())
    for rows in (1, 5, 0, 3):
        feeds = {"x": random(rows, 32)}
        close_to(session.run(feeds)["y"], cpu.run(feeds)["y"])


@program
def bound_run(bench):
    session, cpu = both(bench, models.chain())
    x = random(4, 32)
    with session.bind({"x": x}) as bound:
        bound.run()
        close_to(bound.outputs["y"].numpy(), cpu.run({"x": x})["y"])
        bound.inputs["x"].copy_from(x + 1, stream=session.stream)
        bound.run()
        bound.synchronize()
        close_to(bound.outputs["y"].numpy(), cpu.run({"x": x + 1})["y"])


@program
def queued_runs(bench):
    session, cpu = both(bench, models.chain())
    xs, copies = [random(4, 32, seed=seed) for seed in range(12)], deque()
    with session.bind({"x": (4, 32)}) as bound:
        for x in xs:
            bound.inputs["x"].copy_from(x, stream=session.stream)
            bound.run()
            copies.append(bound.outputs["y"].fetch())
        for x in xs:
            close_to(copies.popleft().numpy(), cpu.run({"x": x})["y"])


@program
def output_to_input_loop(bench):
    """What this project began with: a product, a copy on the device, a kernel of ours, again and again."""
    product, cpu_product = both(bench, models.matmul())
    path = bench.save(models.add_scale())
    scale, cpu_scale = bench.session(path, stream=product), bench.cpu(path)
    assert scale.stream is product.stream
    x = random(3, 32)
    with product.bind({"x": x}) as first, scale.bind({"a": (3, 32), "b": x}) as second:
        for _ in range(6):
            first.run()
            second.inputs["a"].copy_from(first.outputs["y"], stream=product.stream)
            second.run()
            first.inputs["x"].copy_from(second.outputs["y"], stream=product.stream)
        got = first.inputs["x"].numpy()
    y = x
    for _ in range(6):
        y = cpu_scale.run({"a": cpu_product.run({"x": y})["y"], "b": x})["y"]
    close_to(got, y)


@program
def one_buffer_in_and_out(bench):
    """A cache that each run updates in place, through two bindings of different lengths."""
    session, cpu = both(bench, models.decoder())
    close_to(decode(session), decode(cpu))


def decode(session, steps=6):
    """Prefills four tokens and decodes; returns the logits of each run."""
    past, present = {}, {}
    for spec in session.inputs:
        if spec.name.startswith("past_key_values."):
            shape = [models.POSITIONS if size == "capacity" else size for size in spec.shape]
            past[spec.name] = session.device.allocate(shape, np.float32, stream=session.stream, zero=True)
            present[spec.name.replace("past_key_values", "present")] = past[spec.name]
    ids, logits = [3, 1, 4, 1], []
    outputs = {"logits": (1, 1, models.VOCABULARY), **present}
    prompt = {"input_ids": np.array([ids]), "position_ids": np.arange(len(ids))[None]}
    with session.bind({**prompt, **past}, outputs) as bound:
        bound.run()
        logits.append(bound.outputs["logits"].numpy())
    with session.bind({"input_ids": (1, 1), "position_ids": (1, 1), **past}, outputs) as bound:
        for position in range(len(ids), len(ids) + steps):
            bound.inputs["input_ids"].copy_from(np.array([[logits[-1].argmax()]]), stream=session.stream)
            bound.inputs["position_ids"].copy_from(np.array([[position]]), stream=session.stream)
            bound.run()
            logits.append(bound.outputs["logits"].numpy())
    for buffer in past.values():
        buffer.close()
    return np.stack(logits)


@program
def outputs_of_unknown_shape(bench):
    session, cpu = both(bench, models.reshape())
    with session.bind({"x": (4, 8), "shape": np.array([4, 8])}) as bound:
        assert bound.inputs["shape"].device.kind == "cpu", "ONNX Runtime reads it on the host"
        kept = []
        for seed, shape in enumerate(([8, 4], [2, 16], [32, 1])):
            x = random(4, 8, seed=seed)
            bound.inputs["x"].copy_from(x, stream=session.stream)
            bound.inputs["shape"].copy_from(np.array(shape), stream=session.stream)
            bound.run()
            kept.append((bound.outputs["y"], cpu.run({"x": x, "shape": np.array(shape)})["y"]))
        for got, wanted in kept:
            assert got.shape == wanted.shape
            close_to(got.numpy(), wanted)


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
def operators_of_ours(bench):
    for dtype, element in ((np.float32, models.FLOAT), (ml_dtypes.bfloat16, small_models.BFLOAT16)):
        session = bench.session(models.add_scale(element))
        a, b = (random(3, 33, seed=seed).astype(dtype) for seed in (1, 2))
        wanted = ((a.astype(np.float32) + b.astype(np.float32)) * 0.5).astype(dtype)
        close_to(session.run({"a": a, "b": b})["y"], wanted)
        with session.bind({"a": a, "b": b}) as bound:
            bound.run()
            assert bound.outputs["y"].dtype == dtype
            close_to(bound.outputs["y"].numpy(), wanted)


@program
def strings_beside_numbers(bench):
    """What no buffer can hold goes through `run` only."""
    proto = models.chain()
    proto.graph.node.append(helper.make_node("Identity", ["s"], ["said"]))
    for values, name in ((proto.graph.input, "s"), (proto.graph.output, "said")):
        values.append(helper.make_tensor_value_info(name, small_models.STRING, ["k"]))
    session, cpu = both(bench, proto)
    feeds = {"x": random(3, 32), "s": np.array(["a", "bc"])}
    for _ in range(3):
        got, wanted = session.run(feeds), cpu.run(feeds)
        close_to(got["y"], wanted["y"])
        assert got["said"].tolist() == ["a", "bc"]


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


@program
def an_encoder(bench):
    path = bench.save(models.encoder())
    # With all optimisations there is a fused softmax, one more kernel for a simulator to know.
    session, cpu = bench.session(path, options={"graph_optimization": "basic"}), bench.cpu(path)
    for tokens in (1, 5, 9):
        ids = np.random.default_rng(tokens).integers(0, models.VOCABULARY, (2, tokens))
        mask = np.ones_like(ids)
        mask[1, (tokens + 1) // 2 :] = 0
        feeds = {"input_ids": ids, "attention_mask": mask}
        close_to(session.run(feeds)["embedding"], cpu.run(feeds)["embedding"])


@program
def a_run_that_fails(bench):
    """It raises, is not tried again on another provider, and the next one is right."""
    session, cpu = both(bench, models.reshape())
    x = random(4, 8)
    with session.bind({"x": x, "shape": np.array([3, 3])}) as bound:
        try:
            bound.run()
        except RoclineError as error:
            assert "run failed: Reshape node" in str(error), error
            assert "\n" not in str(error)
        else:
            raise AssertionError("32 elements were shaped (3, 3)")
        bound.inputs["shape"].copy_from(np.array([16, 2]), stream=session.stream)
        bound.run()
        close_to(bound.outputs["y"].numpy(), cpu.run({"x": x, "shape": np.array([16, 2])})["y"])
    assert session.report.active == tuple(session.ort.get_providers())


@program
def out_of_memory(bench):
    """The CPU runs, and the report says why; strict raises."""
    path, options = bench.save(models.matmul(1024)), {"memory_limit": 1 << 20}
    with rocline.Session(path, [bench.provider.name], options=options) as session:
        assert session.report.active == ("CPUExecutionProvider",), session.report
        (fallback,) = session.report.fallbacks
        assert fallback.provider == bench.provider.ort_name
        assert "memory" in fallback.reason, fallback.reason
        assert session.run({"x": random(1, 1024)})["y"].shape == (1, 1024)
    try:
        rocline.Session(path, [bench.provider.name], options=options, strict=True)
    except rocline.ProviderError as error:
        assert str(error).startswith(f"strict: {bench.provider.ort_name} cannot run here"), error
        assert "\n" not in str(error)
    else:
        raise AssertionError("strict took the CPU")


@program
def sessions_are_left_open(bench):
    """The process ends with work queued; what is open is closed."""
    session = rocline.Session(bench.save(models.reshape()), [bench.provider.name], strict=True)
    bound = session.bind({"x": (4, 8), "shape": np.array([8, 4])})
    bound.run()
    bench.left = [session, bound, bound.outputs["y"]]


@program
def sessions_are_dropped(bench):
    session = rocline.Session(bench.save(models.chain()), [bench.provider.name], strict=True)
    bound = session.bind({"x": random(4, 32)})
    bound.run()
    del session, bound


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


def traced(bench):
    """Queued runs between two marks of the simulator's call log."""
    session = bench.session(models.chain())
    mark = ctypes.CDLL("libamdhip64.so.7").hipsim_mark
    with session.bind({"x": random(4, 32)}) as bound:
        for _ in range(2):
            bound.run()
            bound.inputs["x"].copy_from(bound.outputs["y"], stream=session.stream)
        mark(b"one run")
        bound.run()
        mark(b"queued runs")
        for _ in range(5):
            bound.run()
            bound.inputs["x"].copy_from(bound.outputs["y"], stream=session.stream)
        mark(b"done")
        bound.run()
        mark(b"closing")
        session.close()


EXTRA = {function.__name__: function for function in (the_copy_on_another_stream, traced)}


def _collect_without_waiting(self):
    self._dropped.clear()


EDGES = {
    # ONNX Runtime queues on a stream of its own.
    "stream": (Provider, "stream_options", lambda self, stream, capture: {}, "bound_run"),
    # A run does not wait for what other streams did with its buffers.
    "announce": (Binding, "_announce", lambda self: None, "every_ordering_the_interface_has"),
    # It does so at the first run only.
    "handovers": (
        GpuDriver,
        "handovers",
        property(lambda self: 0, lambda self, value: None),
        "every_ordering_the_interface_has",
    ),
    # `ready` is forgotten.
    "ready": (Binding, "_wait", lambda self, ready: None, "a_foreign_producer"),
    # What a run gave stays in memory that a captured graph writes to.
    "borrowed": (Binding, "_copy_outputs", lambda self: None, "a_captured_graph_leaves_outputs_alone"),
    # An output's memory goes back to the arena while another stream reads it.
    "arena": (Arena, "collect", _collect_without_waiting, "outputs_dropped_while_another_stream_reads"),
}
"""Every edge that sessions and bindings add to the devices': where it is, what is there instead, and what notices."""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("provider")
    parser.add_argument("--without", choices=EDGES)
    parser.add_argument("programs", nargs="*")
    arguments = parser.parse_args()
    if arguments.without:
        owner, name, replacement, _ = EDGES[arguments.without]
        setattr(owner, name, replacement)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.programs or PROGRAMS:
            with contextlib.closing(Bench(arguments.provider, Path(folder))) as bench:
                {**PROGRAMS, **EXTRA}[name](bench)
            print(name, flush=True)


if __name__ == "__main__":
    main()
