"""Our operators on the simulated device: code objects, the module interface, kernels for waves of 64 and of 32."""

import json
import sys

import pytest
from simulated_device import MODES, PROGRAMS, run

WAVES = {64: "gfx90a", 32: "gfx1100"}


def failures(mode, wave, dtypes, most):
    tests = PROGRAMS.parents[1]
    command = [sys.executable, PROGRAMS / "custom_ops.py", tests, dtypes, most]
    done = run(command, mode, timeout=1800, HIPSIM_ARCH=WAVES[wave])
    assert done.status == 0, done.errors
    results = json.loads(done.output)
    assert len({name.split()[0] for name, *_ in results}) == 7
    return [row for row in results if row[1] or row[2]]


@pytest.mark.parametrize("wave", WAVES)
def test_small_cases(wave):
    assert failures("lazy", wave, "float32,bfloat16", 600) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wave", WAVES)
def test_every_case(wave, mode):
    assert failures(mode, wave, "float32,float16,bfloat16", 1 << 20) == []
