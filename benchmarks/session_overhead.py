"""What `Session.run` costs over `onnxruntime.InferenceSession.run`: the same session, both called in turn.

    python benchmarks/session_overhead.py [--rounds N]

Prints for models with few and many inputs the median time a call of both, and the median of the paired differences.
"""

import argparse
import statistics
import tempfile
import time
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


def measure(path: Path, rounds: int) -> tuple[float, float, float]:
    """Returns the median microseconds a call of Session.run, of ONNX Runtime's run, and of their difference."""
    with rocline.Session(path, ["cpu"], options={"threads": 1}) as session:
        feeds = {spec.name: np.zeros((1, 8), np.float32) for spec in session.inputs}
        names = [spec.name for spec in session.outputs]
        raw = session.ort
        ours, theirs = [], []
        for index in range(rounds + rounds // 10):
            # Interleaved, and in both orders, so that neither always finds the caches warm.
            calls = [(ours, lambda: session.run(feeds)), (theirs, lambda: raw.run(names, feeds))]
            for times, call in calls if index % 2 else reversed(calls):
                start = time.perf_counter_ns()
                call()
                times.append((time.perf_counter_ns() - start) / 1e3)
        ours, theirs = ours[rounds // 10 :], theirs[rounds // 10 :]
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        return statistics.median(ours), statistics.median(theirs), statistics.median(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5000)
    rounds = parser.parse_args().rounds
    print("inputs  Session.run us  onnxruntime us  difference us")
    with tempfile.TemporaryDirectory() as folder:
        for inputs in (1, 3, 16, 64):
            ours, theirs, difference = measure(write_model(Path(folder), inputs), rounds)
            print(f"{inputs:6}  {ours:14.1f}  {theirs:14.1f}  {difference:13.1f}")


if __name__ == "__main__":
    main()
