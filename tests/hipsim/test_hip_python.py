"""AMD's hip-python on the simulated device: its structures and names are those of HIP's own headers."""

import json
import sys

import pytest
from simulated_device import PROGRAMS, run

WAVES = {"gfx90a": ("gfx90a:sramecc+:xnack-", 64, 9, 0), "gfx1100": ("gfx1100", 32, 11, 0)}


@pytest.fixture(scope="module", params=WAVES)
def seen(request):
    done = run([sys.executable, PROGRAMS / "hip_python.py"], "lazy", HIPSIM_ARCH=request.param, HIPSIM_MEMORY=2048)
    assert done.status == 0, done.errors
    return request.param, json.loads(done.output)


def test_properties_lie_where_hip_python_reads_them(seen):
    architecture, answers = seen
    name, wave, major, minor = WAVES[architecture]
    assert answers["properties"] == {
        "name": f"hipsim {architecture} (simulated)",
        "gcnArchName": name,
        "warpSize": wave,
        "totalGlobalMem": 2048 << 20,
        "multiProcessorCount": 104,
        "maxThreadsPerBlock": 1024,
        "major": major,
        "minor": minor,
        "sharedMemPerBlock": 65536,
        "sharedMemPerBlockOptin": 65536,
        "maxThreadsPerMultiProcessor": 2048,
        "l2CacheSize": 8 << 20,
        "memoryPoolsSupported": 1,
        "maxSharedMemoryPerMultiProcessor": 65536,
        "clockInstructionRate": 100000,
        "isLargeBar": 1,
        "asicRevision": 0,
        "surfaceAlignment": 0,
    }


def test_every_error_has_its_name(seen):
    """Two names of one number are one error."""
    _, answers = seen
    assert {name: name for name in answers["errors"]} == answers["errors"]


def test_its_calls_work(seen):
    _, answers = seen
    assert answers["copied"] == 64
