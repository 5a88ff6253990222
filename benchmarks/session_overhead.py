"""What a session costs over `onnxruntime.InferenceSession`: the same session, both called in turn, on the CPU.

    python benchmarks/session_overhead.py [--rounds N]

Prints for models with few and many inputs the median time a call of `Session.run` and of ONNX Runtime's ``run``, of a
binding's `run` and of ``run_with_iobinding`` on the same buffers, and the medians of the paired differences.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

import rocline


def write_model(folder: Path, inputs: int) -> Path:
    """A model that does next to nothing: one Identity an input, tied in both dimensions."""
    names = [f"x{index}" for index in range(inputs)]
    shape = ["batch", "sequence"]
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in names],
        "identities",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names],
        [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, shape) for name in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / f"{inputs}.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def compare(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Returns the median microseconds of a call of each, and of their difference."""
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + rounds // 10):
        # Interleaved, and in both orders, so that neither always finds the caches warm.
        calls = list(zip(times, (ours, theirs), strict=True))
        for measured, call in calls if index % 2 else reversed(calls):
            start = time.perf_counter_ns()
            call()
            measured.append((time.perf_counter_ns() - start) / 1e3)
    first, second = (measured[rounds // 10 :] for measured in times)
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return statistics.median(first), statistics.median(second), statistics.median(differences)


def measure(path: Path, rounds: int) -> list[tuple[float, float, float]]:
    """Compares `Session.run`, then a binding's `run`, with ONNX Runtime's."""
    with rocline.Session(path, ["cpu"], options={"threads": 1}) as session:
        feeds = {spec.name: np.zeros((1, 8), np.float32) for spec in session.inputs}
        names = [spec.name for spec in session.outputs]
        raw = session.ort
        plain = compare(lambda: session.run(feeds), lambda: raw.run(names, feeds), rounds)
        with session.bind(feeds) as bound:
            binding = raw.io_binding()
            for bind, buffers in ((binding.bind_input, bound.inputs), (binding.bind_output, bound.outputs)):
                for name, buffer in buffers.items():
                    bind(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.pointer)
            return [plain, compare(bound.run, lambda: raw.run_with_iobinding(binding), rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5000)
    rounds = parser.parse_args().rounds
    print("inputs  Session.run us  onnxruntime us  difference us    Binding.run us  onnxruntime us  difference us")
    with tempfile.TemporaryDirectory() as folder:
        for inputs in (1, 3, 16, 64):
            plain, bound = measure(write_model(Path(folder), inputs), rounds)
            row = (f"{ours:14.1f}  {theirs:14.1f}  {difference:13.1f}" for ours, theirs, difference in (plain, bound))
            print(f"{inputs:6}  {'    '.join(row)}")


if __name__ == "__main__":
    main()
