"""ONNX Runtime's lines are kept from the terminal, and its errors become one line."""

import logging
import os

import pytest

from rocline.runtime.ort_log import captured, essence

LINE = (
    "\x1b[1;31m2026-11-23 13:04:31.066098955 [E:onnxruntime:, sequential_executor.cc:572 ExecuteKernel] Something "
    "failed\x1b[m\n"
)
VERBOSE = "2026-11-23 13:04:30.004925216 [V:onnxruntime:Default, session_state.cc:1263 Verify]  All nodes placed\n"


def test_lines_are_collected(capfd, caplog):
    caplog.set_level(logging.DEBUG, "rocline")
    with captured() as log:
        os.write(2, (LINE + VERBOSE).encode())
        assert log.lines == []
    assert log.lines == ["Something failed", " All nodes placed"]
    assert log.errors == ["Something failed"]
    assert capfd.readouterr() == ("", "")
    assert caplog.records[0].getMessage() == "onnxruntime: Something failed"


def test_what_others_write_is_passed_on(capfd):
    with captured() as log:
        os.write(2, ("first\n" + LINE + "second\n").encode())
        print("fourth")
    assert log.lines == ["Something failed"]
    assert capfd.readouterr() == ("fourth\n", "first\nsecond\n")


def test_the_banner_of_a_dropped_provider_is_read(capfd):
    with captured() as log:
        print("*************** EP Error ***************")
        print("EP Error /root/x.cc:44 static void f(const O&) [ONNXRuntimeError] : 1 : FAIL : y.h:146 Parse Unknown "
              "option.\n when using [('ROCMExecutionProvider', {})]")  # fmt: skip
        print("Falling back to ['CPUExecutionProvider'] and retrying.")
    assert log.errors == ["Unknown option."]
    assert capfd.readouterr() == ("", "")


def test_descriptors_come_back_after_an_error(capfd):
    with pytest.raises(KeyError), captured():
        os.write(2, b"kept\n")
        raise KeyError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "kept\nafter\n"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Failed to load model because protobuf parsing failed.",
         "Failed to load model because protobuf parsing failed."),
        ("[ONNXRuntimeError] : 1 : FAIL : /root/core/graph/model.cc:181 onnxruntime::Model::Model(onnx::ModelProto&&, "
         "const std::function<void(int)>&) Unsupported model IR version: 99\n",
         "Unsupported model IR version: 99"),
        ("[ONNXRuntimeError] : 1 : FAIL : /root/graph.cc:4319 onnx::GraphProto onnxruntime::Graph::To(const P&) const "
         "relative() was false. \n\n", "relative() was false."),
        ("[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running If node. Name:'a' Status "
         "Message: Non-zero status code returned while running MatMul node. Name:'b' Status Message: "
         "matmul_helper.h:59 Compute MatMul dimension mismatch", "MatMul node 'b': MatMul dimension mismatch"),
        ("Exception during initialization: [with ERRTYPE = hipError_t; bool THRW = true] [with ERRTYPE = hipError_t] "
         "HIP failure 2: hipErrorOutOfMemory ; GPU=0 ; hostname=vm ; file=/root/hip.cc ; line=7 ; "
         "expr=hipMalloc(&p, (n)); ",
         "Exception during initialization: HIP failure 2: hipErrorOutOfMemory in hipMalloc"),
        ("two\nlines", "two lines"),
    ],
)  # fmt: skip
def test_essence(message, line):
    assert essence(message) == line
    assert essence(ValueError(message)) == line
