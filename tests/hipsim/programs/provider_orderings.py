"""ONNX Runtime's ROCm provider between two copies, in every order that a program may come up with."""

import numpy as np
import onnx
import onnxruntime as ort
from device import D2D, D2H, H2D, attempt, call, case, event, main, malloc, record, stream, synchronize, wait
from onnx import helper, numpy_helper

ROWS, COLUMNS = 8, 64
BYTES = ROWS * COLUMNS * 4
RANDOM = np.random.default_rng(7)
WEIGHTS = RANDOM.random((COLUMNS, COLUMNS), dtype=np.float32)


def model() -> bytes:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [ROWS, COLUMNS]) for name in "xy")
    graph = helper.make_graph(nodes, "product", [x], [y], [numpy_helper.from_array(WEIGHTS, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def session(stream_handle: int | None) -> ort.InferenceSession:
    options = {} if stream_handle is None else {"user_compute_stream": str(stream_handle)}
    providers = [("ROCMExecutionProvider", options), "CPUExecutionProvider"]
    made = ort.InferenceSession(model(), providers=providers)
    assert made.get_providers()[0] == "ROCMExecutionProvider"
    return made


def unsynchronised() -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def scenario(
    *,
    flags: int = 1,
    user_stream: bool = True,
    input_on: str = "session",
    with_event: bool = False,
    output_on: str = "session",
    input_waited_for: bool = False,
    synchronized: bool = False,
    by_numpy: bool = False,
) -> bool:
    """Copies an input in, runs, copies the output out, and returns whether the answer is right.

    Args:
        flags: of the session's stream; 0 for a blocking one.
        user_stream: whether the session is given that stream.
        input_on: where the input is copied: "session", "other" (a stream of its own) or "null".
        with_event: whether the session's stream then waits for the copy.
        output_on: where the output is copied, as input_on.
        input_waited_for: whether the host waits for that copy.
        synchronized: whether ONNX Runtime waits at the end of the run.
        by_numpy: whether OrtValue.numpy() reads the output, without further ado.
    """
    x, old = (RANDOM.random((ROWS, COLUMNS), dtype=np.float32) for _ in range(2))
    streams = {"session": stream(flags), "other": stream(), "null": 0}
    ready = event()
    source, result = malloc(BYTES), malloc(BYTES)
    call("hipMemcpy", source, x.ctypes.data, BYTES, H2D)
    call("hipMemcpy", result, old.ctypes.data, BYTES, H2D)
    running = session(streams["session"] if user_stream else None)
    device_x, device_y = (ort.OrtValue.ortvalue_from_numpy(old, "cuda", 0) for _ in range(2))
    binding = running.io_binding()
    binding.bind_ortvalue_input("x", device_x)
    binding.bind_ortvalue_output("y", device_y)
    synchronize()

    call("hipMemcpyAsync", device_x.data_ptr(), source, BYTES, D2D, streams[input_on])
    if with_event:
        record(ready, streams[input_on])
        wait(streams["session"], ready)
    if input_waited_for:
        synchronize(streams[input_on])
    running.run_with_iobinding(binding, None if synchronized else unsynchronised())
    answer = np.empty((ROWS, COLUMNS), np.float32)
    if by_numpy:
        answer = device_y.numpy()
    else:
        call("hipMemcpyAsync", result, device_y.data_ptr(), BYTES, D2D, streams[output_on])
        synchronize(streams[output_on])
        call("hipMemcpy", answer.ctypes.data, result, BYTES, D2H)
    synchronize()
    return bool(np.allclose(answer, x @ WEIGHTS, rtol=1e-4))


@case
def all_on_the_sessions_stream():
    return scenario()


@case
def input_on_another_stream():
    return scenario(input_on="other")


@case
def input_on_another_stream_with_an_event():
    return scenario(input_on="other", with_event=True)


@case
def input_on_the_null_stream():
    return scenario(input_on="null")


@case
def input_on_the_null_stream_for_a_blocking_stream():
    return scenario(input_on="null", flags=0)


@case
def output_on_the_null_stream():
    return scenario(output_on="null")


@case
def output_on_another_stream():
    return scenario(output_on="other")


@case
def no_user_stream_and_no_wait():
    return scenario(user_stream=False, input_waited_for=True)


@case
def no_user_stream_and_ort_waits():
    return scenario(user_stream=False, input_waited_for=True, synchronized=True)


@case
def numpy_without_a_wait():
    return scenario(by_numpy=True)


@case
def numpy_after_ort_waited():
    return scenario(by_numpy=True, synchronized=True)


if __name__ == "__main__":
    # The pool of ONNX Runtime's own OrtValues lives as long as the process.
    ort.OrtValue.ortvalue_from_numpy(WEIGHTS, "cuda", 0)
    attempt("hipsim_forgive_leaks")
    main()
