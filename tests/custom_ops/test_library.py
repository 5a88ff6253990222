"""The shared library as a file: what it needs, what it exports, and how it behaves when it is used wrongly."""

import ctypes
import os
import re
import subprocess
import sys

import numpy as np
import onnxruntime
import op_harness as harness
import pytest

from rocline import custom_ops
from rocline.errors import RoclineError

SPEC = custom_ops.specs()["AddScale"]


def test_needs_libc_alone_and_glibc_2_28_at_most():
    """What makes the wheel fit for manylinux_2_28."""
    text = custom_ops.library_path().read_bytes()
    needed = set(re.findall(rb"lib[a-z_+]+\.so\.\d+", text)) - {b"librocline_ops.so"}
    opened_at_run_time = {b"libamdhip", b"libcuda", b"libhiprtc"}
    linked = {name for name in needed if not any(name.startswith(prefix) for prefix in opened_at_run_time)}
    assert linked <= {b"libc.so.6", b"libm.so.6", b"libdl.so.2", b"libpthread.so.0"}
    versions = [tuple(map(int, match.split(b"."))) for match in re.findall(rb"GLIBC_([0-9.]+)\0", text)]
    assert versions
    assert max(versions) <= (2, 28)
    assert b"GLIBCXX_" not in text


def test_loads_without_python_packages():
    """What a C++ program does: dlopen and the one symbol that ONNX Runtime asks for."""
    library = ctypes.CDLL(str(custom_ops.library_path()))
    assert library.RegisterCustomOps
    code = f"import ctypes; print(bool(ctypes.CDLL({str(custom_ops.library_path())!r}).RegisterCustomOps))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_opens_no_gpu_runtime_by_itself():
    code = (
        "import onnxruntime, pathlib, rocline.custom_ops as ops; ops.register(onnxruntime.SessionOptions());"
        "print(pathlib.Path('/proc/self/maps').read_text())"
    )
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert custom_ops.LIBRARY in maps
    assert "libamdhip64" not in maps
    assert "libcuda.so" not in maps


def test_registering_twice_is_harmless():
    options = onnxruntime.SessionOptions()
    custom_ops.register(options)
    custom_ops.register(options)
    # Without the guard ONNX Runtime refuses.
    with pytest.raises(Exception, match="Domain already set"):
        options.register_custom_ops_library(str(custom_ops.library_path()))
        onnxruntime.InferenceSession(_model(), options, providers=["CPUExecutionProvider"])


def test_many_sessions_share_the_library():
    arrays = harness.make_inputs(SPEC, SPEC.cases[0], "float32")
    wanted = harness.expected(SPEC, SPEC.cases[0], arrays)["y"]
    sessions = [harness.make_session(_model()) for _ in range(3)]
    del sessions[0]
    for session in sessions:
        np.testing.assert_array_equal(session.run(None, arrays)[0], wanted)


def test_attribute_of_another_type_is_refused():
    case = harness.replace_attributes(SPEC.cases[0], {"scale": 2})
    arrays = harness.make_inputs(SPEC, case, "float32")
    with pytest.raises(Exception, match=r"rocline\.AddScale: attribute 'scale': an int, expected a float"):
        harness.make_session(harness.make_model(SPEC, case, "float32", arrays))


def test_missing_library_names_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("ROCLINE_OPS_LIBRARY", str(tmp_path / "gone.so"))
    with pytest.raises(RoclineError, match=r"ROCLINE_OPS_LIBRARY: .*gone\.so is not a file"):
        custom_ops.library_path()


def test_a_library_that_is_none_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "librocline_ops.so"
    path.write_text("no library")
    monkeypatch.setenv("ROCLINE_OPS_LIBRARY", str(path))
    with pytest.raises(RoclineError, match="refused the operator library"):
        custom_ops.register(onnxruntime.SessionOptions())


def test_specs_import_nothing_heavy():
    code = (
        "import sys, rocline.custom_ops as ops; assert ops.specs();"
        "print([name for name in ('numpy', 'onnx', 'onnxruntime', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_cache_folder(monkeypatch, tmp_path):
    def folder(**variables):
        code = "import rocline.custom_ops as ops; print(ops.cache_folder())"
        environment = {k: v for k, v in os.environ.items() if k not in {"ROCLINE_CACHE", "XDG_CACHE_HOME"}}
        run = subprocess.run(
            [sys.executable, "-c", code], env={**environment, **variables}, capture_output=True, text=True
        )
        return run.stdout.strip()

    assert folder(ROCLINE_CACHE="/a/b") == "/a/b"
    assert folder(XDG_CACHE_HOME="/x") == "/x/rocline/code_objects"
    assert folder(HOME="/home/someone") == "/home/someone/.cache/rocline/code_objects"


def _model():
    arrays = harness.make_inputs(SPEC, SPEC.cases[0], "float32")
    return harness.make_model(SPEC, SPEC.cases[0], "float32", arrays)
