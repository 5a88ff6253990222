"""Checks sessions and bindings on an NVIDIA GPU, through ONNX Runtime's CUDA provider, with PyTorch as the other side.

    python tests/gpu/run_session.py [--json FILE] [--only CHECK ...]

Kernels of the operators are built with nvcc first. Each check says what it found; the exit status is 1 if one failed.
These are results of an NVIDIA card.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import run_ops
import session_bench
import session_models as models
import session_programs
import small_models
from onnx import helper

# About 50 ms on an H100.
LAG = 100_000_000
STEPS, RUNS = 1000, 20_000


def lag(stream):
    """Lets a stream do nothing for a while, so that whoever does not wait for it is early."""
    with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
        torch.cuda._sleep(LAG)


def programs_of_the_simulated_device(bench):
    for program in session_programs.PROGRAMS.values():
        own = session_bench.Bench("cuda", bench.folder)
        try:
            program(own)
        finally:
            own.close()
    return f"{len(session_programs.PROGRAMS)} programs right"


def _ring(bench, **options):
    session = bench.session(models.rotation(), **options)
    return session, session.bind({"x": session_bench.random(8, 32)})


def _stepwise(bench, steps):
    """Each step waits, and goes through the host."""
    session, bound = _ring(bench)
    for _ in range(steps):
        bound.run()
        bound.inputs["x"].copy_from(bound.outputs["y"].numpy(), stream=session.stream)
        bound.synchronize()
    return bound.inputs["x"].numpy()


def _queued(session, bound, steps):
    lag(session.stream)
    begin = time.perf_counter()
    for step in range(steps):
        bound.run()
        bound.inputs["x"].copy_from(bound.outputs["y"], stream=session.stream)
        # Later the driver may make the host wait, since a stream takes about a thousand launches at a time.
        if step == 100:
            with session.stream.record() as event:
                assert not event.done, "something waited for the stream"
            begin_wait = time.perf_counter()
    return bound.inputs["x"].numpy(), (begin_wait - begin) / 100 * 1e6


def a_ring_of_copies(bench):
    wanted = _stepwise(bench, STEPS)
    session, bound = _ring(bench)
    got, cost = _queued(session, bound, STEPS)
    assert got.tobytes() == wanted.tobytes(), "queued steps differ from steps with waits"
    assert np.isfinite(got).all()
    return f"{STEPS} queued steps bit-equal to the stepwise run; the host spends {cost:.1f} us a step, run and copy"


def a_ring_of_captured_runs(bench):
    wanted = _stepwise(bench, STEPS)
    session, bound = _ring(bench, options={"graph_capture": True})
    with session.bind({"x": (8, 32)}) as first:
        first.run()
        assert first.captured, first.uncaptured
    bound.run()
    assert bound.captured, bound.uncaptured
    bound.inputs["x"].copy_from(session_bench.random(8, 32), stream=session.stream)
    got, cost = _queued(session, bound, STEPS)
    assert got.tobytes() == wanted.tobytes(), "replayed steps differ from eager ones"
    return f"{STEPS} replays bit-equal to the stepwise run; the host spends {cost:.1f} us a step, launch and copy"


def _identities(count):
    shape = ["n", 8]
    return small_models.model(
        [helper.make_node("Neg", [f"x{index}"], [f"y{index}"]) for index in range(count)],
        [(f"x{index}", models.FLOAT, shape) for index in range(count)],
        [(f"y{index}", models.FLOAT, shape) for index in range(count)],
    )


def _raw(session, bound):
    """A run of ONNX Runtime's own API on a binding's buffers, which queues and does not wait either."""
    binding, options = session.ort.io_binding(), onnxruntime.RunOptions()
    for entry in (("disable_synchronize_execution_providers", "1"), ("gpu_graph_id", "-1")):
        options.add_run_config_entry(*entry)
    for bind, buffers in ((binding.bind_input, bound.inputs), (binding.bind_output, bound.outputs)):
        for name, buffer in buffers.items():
            memory = ("cpu", 0) if buffer.device.kind == "cpu" else ("cuda", buffer.device.device_id)
            bind(name, *memory, buffer.dtype.type, buffer.shape, buffer.pointer)
    return partial(session.ort.run_with_iobinding, binding, options)


def overhead_over_onnxruntime(bench):
    """The same buffers, session and run options, called through a binding and through ONNX Runtime alone, in turn."""
    found, failed = [], []
    for name, proto, feeds in (
        ("2 nodes, 1 input", models.chain(), {"x": session_bench.random(8, 32)}),
        ("64 nodes, 64 inputs", _identities(64), {f"x{index}": np.ones((1, 8), np.float32) for index in range(64)}),
        ("an encoder", models.encoder(), {"input_ids": np.ones((2, 9), int), "attention_mask": np.ones((2, 9), int)}),
    ):
        session = bench.session(proto)
        bound = session.bind(feeds)
        ours, theirs, raw = [], [], _raw(session, bound)
        for turn in range(3300):
            calls = [(ours, bound.run), (theirs, raw)]
            for times, call in calls if turn % 2 else reversed(calls):
                begin = time.perf_counter_ns()
                call()
                times.append(time.perf_counter_ns() - begin)
            if turn % 5 == 4:
                bound.synchronize()
        ours, theirs = (np.array(times[300:]) / 1e3 for times in (ours, theirs))
        difference, allowed = float(np.median(ours - theirs)), max(0.05 * float(np.median(theirs)), 5.0)
        found.append(f"{name}: {np.median(ours):.1f} us, ONNX Runtime {np.median(theirs):.1f} us, {difference:+.1f} us")
        if difference > allowed:
            failed.append(f"{found[-1]}, allowed {allowed:.1f} us")
    assert not failed, "; ".join(failed)
    return "; ".join(found)


def tensors_of_torch_are_bound_as_they_are(bench):
    for element, dtype in ((models.FLOAT, torch.float32), (small_models.BFLOAT16, torch.bfloat16)):
        session = bench.session(models.add_scale(element))
        a, b, y = (torch.full((4, 33), value, dtype=dtype, device="cuda") for value in (1, 2, 0))
        with session.bind({"a": a, "b": b}, {"y": y}) as bound:
            pointers = [bound.inputs["a"].pointer, bound.inputs["b"].pointer, bound.outputs["y"].pointer]
            assert pointers == [a.data_ptr(), b.data_ptr(), y.data_ptr()]
            bound.run()
            seen = torch.from_dlpack(bound.outputs["y"])
            assert seen.data_ptr() == y.data_ptr()
            assert bool((seen == 1.5).all())
            # What PyTorch queues later is ordered by its event.
            torch.cuda._sleep(LAG)
            a.fill_(3)
            event = torch.cuda.Event()
            event.record()
            with session.device.foreign_event(event.cuda_event) as ready:
                bound.run(ready=ready)
            wanted = np.full((4, 33), 2.5, ml_dtypes.bfloat16 if dtype == torch.bfloat16 else np.float32)
            assert (bound.outputs["y"].numpy() == wanted).all()
        with session.bind({"a": a, "b": b}, {"y": None}) as bound:
            bound.run()
            output = bound.outputs["y"]
            tensor = torch.from_dlpack(output)
            assert tensor.data_ptr() == output.pointer
            bound.run()
            assert tensor.data_ptr() != bound.outputs["y"].pointer, "memory in use was handed out"
            assert bool((tensor == 2.5).all())
    return "pointers equal both ways, float32 and bfloat16, bound and allocated by ONNX Runtime"


def memory_does_not_grow(bench):
    session, bound = _ring(bench)
    dynamic = bench.session(models.reshape())
    new = dynamic.bind({"x": (4, 8), "shape": np.array([8, 4])})
    feeds = {"x": session_bench.random(3, 32)}

    def cycle(turn):
        bound.run()
        bound.inputs["x"].copy_from(bound.outputs["y"], stream=session.stream)
        new.run()
        new.outputs["y"]
        if turn % 10 == 0:
            session.run(feeds)
            bound.outputs["y"].numpy()

    for turn in range(1000):
        cycle(turn)
    bound.synchronize()
    free, resident = session.device.memory_info().free, resident_kib()
    for turn in range(RUNS):
        cycle(turn)
    bound.synchronize()
    less, more = free - session.device.memory_info().free, resident_kib() - resident
    assert less <= 0, f"{less:,} bytes of device memory less"
    assert more < 8 << 10, f"{more} KiB of host memory more"
    return f"{RUNS} runs of each of two bindings: device memory +0, host memory +{more} KiB"


def resident_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def decoding(bench):
    """A small decoder with its cache in place."""
    path = bench.save(models.decoder())
    wanted = session_bench.decode(bench.cpu(path))
    for options in ({}, {"graph_capture": True}):
        session_bench.close_to(session_bench.decode(bench.session(path, options=options)), wanted)
    return "equal to the CPU, eager and captured"


CHECKS = (
    programs_of_the_simulated_device,
    a_ring_of_copies,
    a_ring_of_captured_runs,
    overhead_over_onnxruntime,
    tensors_of_torch_are_bound_as_they_are,
    decoding,
    memory_does_not_grow,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", action="append", choices=[check.__name__ for check in CHECKS])
    arguments = parser.parse_args()
    major, minor = torch.cuda.get_device_capability()
    found, failed = {"card": torch.cuda.get_device_name()}, 0
    print(f"{found['card']}, an NVIDIA card")
    with tempfile.TemporaryDirectory() as cubins, tempfile.TemporaryDirectory() as folder:
        run_ops.build_cubins(Path(cubins), f"sm_{major}{minor}")
        os.environ["ROCLINE_CODE_OBJECTS"] = cubins
        for check in CHECKS:
            if arguments.only and check.__name__ not in arguments.only:
                continue
            bench = session_bench.Bench("cuda", Path(folder))
            try:
                found[check.__name__] = check(bench)
                print(f"passed  {check.__name__}: {found[check.__name__]}", flush=True)
            except Exception as error:
                failed += 1
                found[check.__name__] = f"FAILED: {error}"
                print(f"FAILED  {check.__name__}: {error}\n{traceback.format_exc()}", flush=True)
            finally:
                bench.close()
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
