"""Machines on which ROCm cannot run, in every way that is known: `doctor` and `Session` say which, and the CPU runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import op_emulator
import pytest
from simulated_device import PROGRAMS, run

from rocline.custom_ops import library_path

CPU, ROCM = "CPUExecutionProvider", "ROCMExecutionProvider"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("providers") / "model.onnx"
    subprocess.run([sys.executable, PROGRAMS / "faults.py", "write", path], check=True)
    return path


@pytest.fixture(scope="module")
def libraries():
    """The folder of the simulated libraries."""
    code = "import os; print(os.environ['LD_LIBRARY_PATH'].split(':')[0])"
    return Path(run([sys.executable, "-c", code]).output.strip())


@pytest.fixture
def say(model):
    def start(*prefix, given=None, **settings):
        command = ["env", *prefix, sys.executable, PROGRAMS / "providers.py", model, json.dumps(given or {})]
        done = run(command, **settings)
        assert done.status == 0, done.errors
        assert done.findings == []
        return json.loads(done.output)

    return start


@pytest.fixture(scope="module")
def sum_on_the_cpu(model):
    command = [sys.executable, PROGRAMS / "providers.py", str(model), "{}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["active"] == [CPU]
    return said["y"]


def check_fallback(said, reason, sum_on_the_cpu, *, doctor=True):
    assert said["active"] == [CPU]
    assert len(said["fallbacks"]) == 1
    assert re.search(reason, said["fallbacks"][0])
    assert said["y"] == pytest.approx(sum_on_the_cpu, rel=1e-5)
    if doctor:
        assert re.search(reason, said["doctor"])
        assert said["runs"] == [CPU]
        assert said["fix"]
    else:
        assert said["doctor"] is None


def test_all_is_well(say, sum_on_the_cpu):
    said = say()
    assert (said["doctor"], said["gpus"], said["runs"]) == (None, ["gfx90a"], [ROCM, CPU])
    assert (said["active"], said["fallbacks"]) == ([ROCM, CPU], [])
    assert said["y"] == pytest.approx(sum_on_the_cpu, rel=1e-5)


@pytest.mark.parametrize("name", ["libamdhip64.so.7", "libMIOpen.so.1", "libroctracer64.so.4"])
def test_a_missing_library(name, say, libraries, tmp_path, sum_on_the_cpu):
    for file in libraries.iterdir():
        if not file.name.startswith(name.partition(".so")[0] + "."):
            (tmp_path / file.name).symlink_to(file)
    reason = rf"{re.escape(name)} not found \(needed by libonnxruntime_providers_rocm\.so\)"
    check_fallback(say(f"LD_LIBRARY_PATH={tmp_path}"), reason, sum_on_the_cpu)


def test_a_library_of_another_version(say, libraries, tmp_path, sum_on_the_cpu):
    for file in libraries.iterdir():
        (tmp_path / file.name.replace("libhipblas.so.3", "libhipblas.so.2")).symlink_to(file)
    reason = rf"libhipblas\.so\.3 not found .*, only {re.escape(str(tmp_path))}/libhipblas\.so\.2"
    check_fallback(say(f"LD_LIBRARY_PATH={tmp_path}"), reason, sum_on_the_cpu)


@pytest.mark.parametrize(
    ("kfd", "reason"),
    [
        ("none", "no AMD GPU: there is no /dev/kfd"),
        ("empty", "no AMD GPU: /sys/class/kfd lists none"),
        ("unreadable", "this user may not open /dev/kfd, which belongs to group"),
    ],
)
def test_no_device(kfd, reason, say, sum_on_the_cpu):
    check_fallback(say(HIPSIM_KFD=kfd, HIPSIM_DEVICES=0), reason, sum_on_the_cpu)


def test_a_device_that_does_not_initialise(say, sum_on_the_cpu):
    said = say(HIPSIM_KFD="present", HIPSIM_DEVICES=0)
    check_fallback(said, r"hipErrorNoDevice|no HIP device", sum_on_the_cpu, doctor=False)


def test_a_gpu_for_which_the_provider_has_no_code(say, sum_on_the_cpu):
    reason = r"libonnxruntime_providers_rocm\.so has no code for gfx1036, only for gfx1030, gfx1100"
    check_fallback(say(HIPSIM_ARCH="gfx1036"), reason, sum_on_the_cpu)


def test_a_gpu_for_which_the_operators_have_no_code(say, tmp_path, sum_on_the_cpu):
    library = shutil.copy(library_path(), tmp_path)
    said = say(f"ROCLINE_OPS_LIBRARY={library}", f"ROCLINE_CACHE={tmp_path}")
    reason = (
        "rocline.AddScale: no code object of add_scale for gfx90a, and no libhiprtc to compile it: run `rocline ops"
    )
    check_fallback(said, reason, sum_on_the_cpu, doctor=False)


def test_two_hip_runtimes(say, libraries, tmp_path, sum_on_the_cpu):
    other = tmp_path / "libamdhip64.so.5"
    source = tmp_path / "other.cc"
    source.write_text("")
    command = [*op_emulator.compiler(), "-shared", "-fPIC", "-Wl,-soname,libamdhip64.so.5", source, "-o", other]
    subprocess.run(list(map(str, command)), check=True)
    said = say(given={"load": str(other)})
    reason = rf"two HIP runtimes: {other} is loaded .* uses {libraries}/libamdhip64\.so\.7"
    check_fallback(said, reason, sum_on_the_cpu, doctor=False)


def test_a_device_id_that_is_not_there(say, sum_on_the_cpu):
    check_fallback(say(given={"device_id": 1}), "no GPU has device_id 1, only 0", sum_on_the_cpu, doctor=False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hip_mem_limit": 1}, "InputError: .*'?hip_mem_limit'?"),
        ({"gpu_mem_limit": "much"}, "InputError: .*'?gpu_mem_limit'?.*much"),
        ({"arena_extend_strategy": "kNever"}, "InputError: .*kNextPowerOfTwo"),
        ({"cudnn_conv_algo_search": "DEFAULT"}, "InputError: .*'?cudnn_conv_algo_search'?"),
    ],
)
def test_bad_options(options, reason, say):
    assert re.search(reason, say(given={"options": options})["error"])


def test_strict_refuses_each(say):
    for settings, reason in (
        ({"HIPSIM_KFD": "none"}, "no AMD GPU"),
        ({"HIPSIM_ARCH": "gfx1036"}, "no code for gfx1036"),
        ({"HIPSIM_KFD": "present", "HIPSIM_DEVICES": 0}, "hipErrorNoDevice|no HIP device"),
        ({"HIPSIM_FAIL": "hipStreamCreateWithFlags:1:2"}, "hipErrorOutOfMemory"),
    ):
        error = say(given={"strict": True}, **settings)["error"]
        assert re.search(rf"^ProviderError: strict: {ROCM} cannot run here: .*({reason})", error)
