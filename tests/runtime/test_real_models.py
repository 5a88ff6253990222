"""Published ONNX files through Session and `rocline run`: the very numbers that ONNX Runtime gives."""

import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import small_models

import rocline

RANDOM = np.random.default_rng(0)
SILERO = {
    "input": RANDOM.standard_normal((1, 512)).astype(np.float32),
    "state": np.zeros((2, 1, 128), np.float32),
    "sr": np.array(16000),
}
MODELS = {
    "silero-vad": ("silero-vad", "silero_vad/data/silero_vad.onnx", SILERO),
    "silero-vad-16k": (
        "silero-vad",
        "silero_vad/data/silero_vad_16k_op15.onnx",
        {**SILERO, "input": np.tile(SILERO["input"], (3, 1)), "state": np.zeros((2, 3, 128), np.float32)},
    ),
    "rapidocr-detect": (
        "rapidocr",
        "rapidocr/models/PP-OCRv6_det_small.onnx",
        {"x": RANDOM.standard_normal((1, 3, 64, 96)).astype(np.float32)},
    ),
    "rapidocr-recognise": (
        "rapidocr",
        "rapidocr/models/PP-OCRv6_rec_small.onnx",
        {"x": RANDOM.standard_normal((2, 3, 48, 64)).astype(np.float32)},
    ),
    "rapidocr-classify": (
        "rapidocr",
        "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        {"x": RANDOM.standard_normal((2, 3, 48, 192)).astype(np.float32)},
    ),
    "magika": (
        "magika",
        "magika/models/standard_v3_3/model.onnx",
        {"bytes": RANDOM.integers(0, 257, (2, 2048)).astype(np.int32)},
    ),
}


def raw_outputs(path, feeds):
    """Runs plain ONNX Runtime with one thread, as the sessions below: sums then add up in one order."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def assert_equal(outputs, expected):
    assert outputs.keys() == expected.keys()
    for name, array in expected.items():
        assert outputs[name].dtype == array.dtype
        assert np.array_equal(outputs[name], array), name


@pytest.mark.parametrize("name", MODELS)
def test_session(name):
    *file, feeds = MODELS[name]
    path = small_models.package_file(*file)
    with rocline.Session(path, ["cpu"], options={"threads": 1}) as session:
        assert_equal(session.run(feeds), raw_outputs(path, feeds))
        (operators,) = session.report.placement.values()
        assert sum(operators.values()) > 10


@pytest.mark.parametrize("name", ["silero-vad", "rapidocr-detect", "magika"])
def test_rocline_run(name, tmp_path):
    *file, feeds = MODELS[name]
    path = small_models.package_file(*file)
    given = []
    for input_name, array in feeds.items():
        np.save(tmp_path / f"{input_name}.npy", array)
        given += ["--input", f"{input_name}={tmp_path / input_name}.npy"]
    command = [sys.executable, "-m", "rocline", "run", path, *given, "--output", tmp_path / "out", "--threads", "1"]
    ran = subprocess.run([*command, "--provider", "cpu"], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "ran on CPUExecutionProvider" in ran.stdout
    expected = raw_outputs(path, feeds)
    assert_equal({file.stem: np.load(file) for file in (tmp_path / "out").iterdir()}, expected)
    for output in expected:
        assert f"{output}: float32" in ran.stdout
