"""Every case of every op through its device kernels, run on the host for both wave sizes: see op_emulator.py."""

import os
import subprocess
import sys
from pathlib import Path

import op_emulator
import pytest

CASES = Path(__file__).with_name("test_ops.py")


@pytest.mark.parametrize("wave", [32, 64])
def test_kernels_give_what_the_references_give(wave, tmp_path):
    library = op_emulator.build_library(tmp_path, wave)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "test_case", str(CASES)]
    environment = {**os.environ, "ROCLINE_OPS_LIBRARY": str(library)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


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
