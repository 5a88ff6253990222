"""The real ROCm provider takes the nodes that an export predicts for it, and ONNX Runtime moves the same to the CPU."""

import json
import sys

import pytest
import simulated_device
import tiny_models
from exported import exported

from rocline.export import dtypes, export_model, fitting, placement, targets

PROGRAM = """
import json, sys
from rocline import Session
with Session(sys.argv[1], ["rocm", "cpu"], strict=True) as session:
    print(json.dumps(session.report.placement))
"""
ROCM = targets.load("rocm")


def observed(path):
    done = simulated_device.run([sys.executable, "-c", PROGRAM, path], "sync")
    # What MIOpen's stub leaves behind when a session closes is not this test's matter.
    assert done.status in (0, simulated_device.FINDINGS), done.errors
    return json.loads(done.output)


def plain(counts):
    """Operators without their domains, as ONNX Runtime's log has them."""
    return {name.rpartition("::")[2]: count for name, count in counts.items()}


@pytest.mark.parametrize(
    ("kind", "dtype"), [("bert", "fp16"), ("bert", "bf16"), ("wav2vec2", "fp16"), ("vit", "fp16"), ("t5", "fp16")]
)
def test_an_encoder_runs_where_it_was_predicted_to(kind, dtype, tmp_path):
    subject = exported(kind, tmp_path)
    path = next(path for name, path in subject.files.items() if "decoder" not in name)
    fitting.fuse(path, subject.model.config, ROCM, dtype)
    dtypes.convert(path, dtype, ROCM)
    predicted = placement.predict(path, ROCM)
    assert set(predicted.nodes) == {ROCM.provider}
    found = observed(path)
    assert found.get("CPUExecutionProvider", {}) == plain(predicted.shapes)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_decoder_runs_on_the_gpu_alone(dtype, tmp_path):
    tiny_models.save("llama", tmp_path / "source")
    manifest = export_model(tmp_path / "source", tmp_path / "out", dtype=dtype)
    fusion = manifest.fusion["model.onnx"]
    found = observed(tmp_path / "out")
    assert found.get("CPUExecutionProvider", {}) == plain(fusion.shapes)
    assert set(found) <= {"ROCMExecutionProvider", "CPUExecutionProvider"}
    assert (
        found["ROCMExecutionProvider"]["CachedAttention"] == fusion.placement[ROCM.provider]["rocline::CachedAttention"]
    )
