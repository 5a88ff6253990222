"""Every case of every op through its device kernels, run on the host for both wave sizes: see op_emulator.py."""

import os
import subprocess
import sys
from pathlib import Path

import op_emulator
import pytest

CASES = Path(__file__).with_name("test_ops.py")


@pytest.fixture(scope="module", params=[32, 64])
def environment(request, tmp_path_factory):
    library = op_emulator.build_library(tmp_path_factory.mktemp("emulated"), request.param)
    return {**os.environ, "ROCLINE_OPS_LIBRARY": str(library)}


def test_kernels_give_what_the_references_give(environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "test_case", str(CASES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


# A device cannot refuse positions, so one that is out of range must do nothing. Prints True for each thing that holds.
OUT_OF_RANGE = """
import numpy as np, op_harness as harness
from rocline import custom_ops
from rocline.custom_ops.cached_attention import spec as attention
from rocline.custom_ops.rotary_cache import spec as rotary
from rocline.custom_ops.schema import Case

def run(name, inputs, alias):
    spec = custom_ops.specs()[name]
    case = Case("out of range", inputs, {"heads": 4, "kv_heads": 2}, alias=alias)
    arrays = harness.make_inputs(spec, case, "float32")
    session = harness.make_session(harness.make_model(spec, case, "float32", arrays))
    return arrays, harness.run_guarded(session, spec, case, "float32", arrays, True)

rows = [[16, -2], [2**40, -(2**63)]]
arrays, got = run("RotaryCache", rotary.inputs(4, 2, 32, 16, *rows), rotary.IN_PLACE)
print(not got["q_rotated"].any(), *((got[f"present_{x}"] == arrays[f"past_{x}"]).all() for x in "kv"))
for tokens in (1, 40):
    inputs = attention.inputs(4, 2, 32, 300, *[[0] * tokens] * 2)
    inputs["position_ids"] = attention.positions(*[[300] * tokens] * 2)
    print(not run("CachedAttention", inputs, {})[1]["y"].any())
"""


def test_positions_out_of_range_do_nothing(environment):
    environment = {**environment, "PYTHONPATH": str(CASES.parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_RANGE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True"] * 5, done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("if (thread_x() == 3) return;\n  out[thread_x()] = shuffle(1.f, 3);", "reads thread 3, which has left"),
        (
            "if (thread_x() % 2)\n    barrier();\n  else\n    ballot(true);",
            "wait for one another for ever (32 at a barrier",
        ),
    ],
    ids=["a lane that left", "a deadlock"],
)
def test_what_a_device_leaves_undefined_is_reported(body, complaint, tmp_path):
    source = tmp_path / "kernel.cc"
    source.write_text(
        '#include "kernels/device.h"\nusing namespace rocline;\n'
        f'extern "C" __global__ void broken(float* out) {{\n  (void)out;\n  {body}\n}}\n'
        "int main() {\n  float out[64];\n"
        '  rocline_emulate(1, 1, 1, 64, "broken", [](const void* p) { broken((float*)p); }, out);\n}\n'
    )
    program = tmp_path / "broken"
    op_emulator.compile_program(source, program, wave=32)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "emulated kernel broken, block (0, 0, 0): " in done.stderr
    assert complaint in done.stderr
