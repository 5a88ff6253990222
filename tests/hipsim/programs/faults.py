"""One piece of work with a session, in a process of its own for each injected failure; prints a JSON object a line.

Reads from standard input, one a line: the value of HIPSIM_FAIL, or nothing for a run without a failure. What is
imported is imported once, and none of it is collected: each process is a fork, made before a GPU library is loaded.

Arguments: the model, the scenario.
"""

import ctypes
import gc
import json
import logging
import os
import select
import signal
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # noqa: F401
import rocm.bindings.hip  # noqa: F401  (opens no library before it is called)
from onnx import TensorProto, helper, numpy_helper

import rocline
import rocline.runtime.devices.hip
import rocline.runtime.devices.host
import rocline.runtime.io_binding

PATIENCE = 600
"""Seconds for one piece of work, far more than a busy machine takes; a wait for the device ends sooner by itself."""
SIZE = 8


def write_model(path: Path) -> None:
    """MatMul, Add, AddScale, ReduceMax, Softmax and Concat: BLAS, MIOpen, provider kernels and one of ours."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((SIZE, SIZE)).astype(np.float32),
        "b": random.standard_normal(SIZE).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("AddScale", ["sum", "x"], ["scaled"], domain="rocline", scale=0.5),
        helper.make_node("ReduceMax", ["scaled"], ["most"], axes=[0], keepdims=1),
        helper.make_node("Softmax", ["scaled"], ["soft"], axis=-1),
        helper.make_node("Concat", ["soft", "most"], ["y"], axis=0),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [SIZE, SIZE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [SIZE + 1, SIZE])
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("rocline", 1)]
    graph = helper.make_graph(nodes, "graph", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=8), path)


X = np.random.default_rng(1).standard_normal((SIZE, SIZE)).astype(np.float32)


class Work:
    """Opens a session, binds, runs, reads, closes; knows in which phase it is and what came of it."""

    def __init__(self, model: str, options: dict[str, object], expected: np.ndarray) -> None:
        self._model, self._options, self._expected = model, options, expected
        self.phase = ""
        self.report: dict[str, object] = {"wrong": [], "fallbacks": [], "errors": []}
        self._library = ctypes.CDLL("libamdhip64.so.7")

    def enter(self, phase: str) -> None:
        self.phase = phase
        self._library.hipsim_mark(phase.encode())

    def check(self, y: np.ndarray) -> None:
        if not np.allclose(y, self._expected, rtol=1e-5, atol=1e-5):
            self.report["wrong"].append(self.phase)

    def do(self) -> None:
        self.enter("create")
        session = rocline.Session(self._model, ["rocm", "cpu"], options=self._options)
        try:
            self.report["fallbacks"] = [row.why for row in session.report.fallbacks]
            self.report["active"] = list(session.report.active)
            self.enter("bind")
            with session.bind({"x": X}, ["y"]) as bound:
                self.enter("run")
                bound.run()
                bound.run()
                bound.synchronize()
                self.enter("read")
                self.check(bound.outputs["y"].numpy())
                self.report["uncaptured"] = bound.uncaptured if self._options else ""
                self.enter("write")
                bound.inputs["x"].copy_from(X, stream=session.stream)
                bound.run()
                self.check(bound.outputs["y"].numpy())
                self.enter("unbind")
            self.enter("unbound run")
            self.check(session.run({"x": X})["y"])
            self.enter("close")
        finally:
            session.close()

    def run(self) -> dict[str, object]:
        try:
            self.do()
        except Exception as error:
            chain = error
            while chain.__context__ is not None:
                chain = chain.__context__
            for each in dict.fromkeys((error, chain)):
                self.report["errors"].append([type(each).__module__, type(each).__name__, str(each)])
        self.report["phase"] = self.phase
        return self.report


def child(failure: str, model: str, options: dict[str, object], expected: np.ndarray, pipe: int) -> None:
    """The work in a fork; what it reports goes through the pipe."""
    os.environ["HIPSIM_FAIL"] = failure
    if failure:
        os.environ["HIPSIM_LOG"] = str(written_by(os.getpid(), "log"))
    logging.getLogger("rocline").setLevel(logging.ERROR)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    report = Work(model, options, expected).run()
    os.write(pipe, json.dumps(report).encode())


def wait(number: int, deadline: float) -> int | None:
    """The exit status of a process, or None if it hangs and had to be ended."""
    handle = os.pidfd_open(number)
    try:
        ready, _, _ = select.select([handle], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            os.kill(number, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        return status if ready else None
    finally:
        os.close(handle)


def written_by(number: int, suffix: str) -> Path:
    """Where a process writes its findings (txt) or its call log (log)."""
    return Path(os.environ["HIPSIM_REPORT"]) / f"{number}.{suffix}"


def taken(file: Path) -> list[str]:
    """The lines of a file, which is then gone: findings are not counted again."""
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def failed_at(log: list[str]) -> list[str] | None:
    """In which step a call failed, and where it was made; None if no call did."""
    step = ""
    for line in map(json.loads, log):
        step = line.get("mark", step)
        if "injected" in line:
            return [step, line["by"]]
    return None


def main() -> None:
    model, scenario = sys.argv[1:]
    options = {"eager": {}, "captured": {"graph_capture": True}}[scenario]
    with rocline.Session(model, ["cpu"]) as session:
        expected = session.run({"x": X})["y"]
    gc.freeze()
    for line in sys.stdin:
        failure = line.strip()
        reading, writing = os.pipe()
        number = os.fork()
        if not number:
            os.close(reading)
            child(failure, model, options, expected, writing)
            return
        os.close(writing)
        status = wait(number, time.monotonic() + PATIENCE)
        with os.fdopen(reading, "rb") as pipe:
            text = pipe.read().decode()
        result = {
            "failure": failure,
            "status": status,
            "findings": [line.removeprefix("hipsim: ") for line in taken(written_by(number, "txt"))],
            "failed_at": failed_at(taken(written_by(number, "log"))),
            **json.loads(text or "{}"),
        }
        print(json.dumps(result), flush=True)


if sys.argv[1] == "write":
    write_model(Path(sys.argv[2]))
else:
    main()
