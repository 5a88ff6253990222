"""Programs on what single sessions compute: plain and bound runs, what they raise, what they fall back to."""

from collections import deque

import ml_dtypes
import numpy as np
import session_models as models
import small_models
from session_bench import both, close_to, decode, program, random

import rocline
from rocline import RoclineError


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


@program
def an_input_is_an_output(bench):
    """ONNX Runtime does not write such an output to the memory that is bound for it."""
    session, cpu = both(bench, small_models.passed_on())
    for wanted in (None, {"x": None, "y": (3,)}, ["x"]):
        with session.bind({"x": (3,)}, wanted) as bound:
            for turn in range(3):
                x = random(3, seed=turn)
                bound.inputs["x"].copy_from(x, stream=session.stream)
                bound.run()
                for name, buffer in bound.outputs.items():
                    close_to(buffer.numpy(), cpu.run({"x": x})[name])
                for name, array in session.run({"x": x}).items():
                    close_to(array, cpu.run({"x": x})[name])


@program
def an_output_is_constant(bench):
    """ONNX Runtime copies what no input reaches outside of the stream: runs wait, and say so."""
    for kind in ("alone", "shared", "folded", "shape"):
        session, cpu = both(bench, models.constant(kind))
        _, constant = (spec.name for spec in session.outputs)
        (note,) = session.report.notes
        assert f"copies {constant}, which no input reaches" in note, note
        x = random(2)
        wanted = cpu.run({"x": x})
        for outputs in (None, {"y": None, constant: None}):
            with session.bind({"x": x}, outputs) as bound:
                for _ in range(3):
                    if outputs is None:
                        bound.outputs[constant].fill(0xFF, stream=session.stream)
                    bound.run()
                for name, buffer in bound.outputs.items():
                    close_to(buffer.numpy(), wanted[name])
        for name, array in session.run({"x": x}).items():
            close_to(array, wanted[name])


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
    session, cpu = both(bench, models.chain_and_strings())
    feeds = {"x": random(3, 32), "s": np.array(["a", "bc"])}
    for _ in range(3):
        got, wanted = session.run(feeds), cpu.run(feeds)
        close_to(got["y"], wanted["y"])
        assert got["said"].tolist() == ["a", "bc"]


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
