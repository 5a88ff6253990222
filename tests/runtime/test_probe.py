"""Each reason why a provider cannot run is found on a machine made of files, and is named with a fix."""

import fake_machine
import pytest

from rocline.errors import ProviderError
from rocline.runtime import probe
from rocline.runtime.probe import Machine
from rocline.runtime.providers import PROVIDERS

ROCM, MIGRAPHX, CUDA, CPU = (PROVIDERS[name] for name in ("rocm", "migraphx", "cuda", "cpu"))
BUILT_IN = frozenset(row.ort_name for row in PROVIDERS.values())


class FakeMachine:
    """A machine with a provider library that needs one ROCm library, and whatever a test adds."""

    def __init__(self, root, provider=ROCM, architectures=("gfx942", "gfx1100")):
        self.root, self.provider, self.libraries = root, provider, root / "capi"
        self.environ, self.access = {}, lambda path: True
        fake_machine.write_library(
            self.libraries / provider.library,
            needed=["libamdhip64.so.7"],
            runpath="/opt/rocm/lib:/opt/rocm-7.2.4/lib",
            architectures=architectures,
        )

    def add_rocm(self, version=7):
        return fake_machine.write_library(self.root / f"opt/rocm/lib/libamdhip64.so.{version}")

    def probe(self, device_id=0, built_in=BUILT_IN):
        machine = Machine(self.root, self.environ, self.access)
        return probe.probe(self.provider, built_in, self.libraries, device_id=device_id, machine=machine)


def test_cpu_always_runs(tmp_path):
    answer = probe.probe(CPU, frozenset(), tmp_path)
    assert (answer.reason, answer.fix) == (None, "")


@pytest.mark.parametrize("provider", [ROCM, MIGRAPHX])
def test_a_machine_with_everything(tmp_path, provider):
    machine = FakeMachine(tmp_path, provider)
    machine.add_rocm()
    fake_machine.add_amd_gpus(tmp_path, 90402)
    assert machine.probe().reason is None


def test_not_built_in(tmp_path):
    answer = FakeMachine(tmp_path).probe(built_in=frozenset({"CPUExecutionProvider"}))
    assert answer.reason == "this onnxruntime is built without ROCMExecutionProvider"
    assert "rocline[rocm]" in answer.fix


def test_missing_library(tmp_path):
    machine = FakeMachine(tmp_path)
    fake_machine.add_amd_gpus(tmp_path, 90402)
    answer = machine.probe()
    assert answer.reason == "libamdhip64.so.7 not found (needed by libonnxruntime_providers_rocm.so)"
    assert "ROCm 7.2.4" in answer.fix
    assert "LD_LIBRARY_PATH" in answer.fix


def test_library_in_another_version(tmp_path):
    machine = FakeMachine(tmp_path)
    other = machine.add_rocm(version=5)
    answer = machine.probe()
    assert answer.reason == f"libamdhip64.so.7 not found (needed by libonnxruntime_providers_rocm.so), only {other}"


def test_library_found_through_the_environment(tmp_path):
    machine = FakeMachine(tmp_path)
    fake_machine.write_library(tmp_path / "elsewhere/libamdhip64.so.7")
    fake_machine.add_amd_gpus(tmp_path, 90402)
    assert machine.probe().reason is not None
    machine.environ = {"LD_LIBRARY_PATH": "/none:/elsewhere"}
    assert machine.probe().reason is None


def test_missing_provider_library(tmp_path):
    machine = FakeMachine(tmp_path)
    (machine.libraries / ROCM.library).unlink()
    assert "libonnxruntime_providers_rocm.so is missing" in machine.probe().reason


def test_no_device_node(tmp_path):
    machine = FakeMachine(tmp_path)
    machine.add_rocm()
    answer = machine.probe()
    assert answer.reason == "no AMD GPU: there is no /dev/kfd"
    assert "amdgpu driver" in answer.fix


def test_no_gpu_behind_the_driver(tmp_path):
    machine = FakeMachine(tmp_path)
    machine.add_rocm()
    fake_machine.add_amd_gpus(tmp_path)
    assert machine.probe().reason == "no AMD GPU: /sys/class/kfd lists none"


def test_permission(tmp_path):
    machine = FakeMachine(tmp_path)
    machine.add_rocm()
    fake_machine.add_amd_gpus(tmp_path, 90402)
    machine.access = lambda path: path != tmp_path / "dev/kfd"
    answer = machine.probe()
    assert answer.reason.startswith("this user may not open /dev/kfd, which belongs to group ")
    assert "usermod -aG" in answer.fix
    assert "render" in answer.fix


def test_architecture_without_code(tmp_path):
    machine = FakeMachine(tmp_path)
    machine.add_rocm()
    fake_machine.add_amd_gpus(tmp_path, 110501)
    answer = machine.probe()
    assert answer.reason == "libonnxruntime_providers_rocm.so has no code for gfx1151, only for gfx1100, gfx942"
    # The variable makes the HIP runtime take the GPU for another one.
    machine.environ = {"HSA_OVERRIDE_GFX_VERSION": "11.0.0"}
    assert machine.probe().reason is None


@pytest.mark.parametrize("architectures", [None, ["gfx11-generic"]])
def test_architecture_that_cannot_be_told(tmp_path, architectures):
    machine = FakeMachine(tmp_path, architectures=architectures)
    machine.add_rocm()
    fake_machine.add_amd_gpus(tmp_path, 110501)
    assert machine.probe().reason is None


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (90008, "gfx908"),
        (90010, "gfx90a"),
        (90402, "gfx942"),
        (100300, "gfx1030"),
        (110501, "gfx1151"),
        (120001, "gfx1201"),
    ],
)
def test_names_of_architectures(tmp_path, version, name):
    fake_machine.add_amd_gpus(tmp_path, version)
    (device,) = probe.DEVICES["amd"].find(Machine(tmp_path, {}))
    assert device.architecture == name


def test_device_id(tmp_path):
    machine = FakeMachine(tmp_path)
    machine.add_rocm()
    fake_machine.add_amd_gpus(tmp_path, 90402, 110501)
    assert machine.probe(0).reason is None
    assert "no code for gfx1151" in machine.probe(1).reason
    assert machine.probe(2).reason == "no GPU has device_id 2, only 0 to 1"
    # The variable renumbers the GPUs: which one is number 2 is not known, but one of them has code.
    machine.environ = {"HIP_VISIBLE_DEVICES": "1,0"}
    assert machine.probe(2).reason is None


def test_cuda(tmp_path):
    machine = FakeMachine(tmp_path, CUDA, architectures=None)
    machine.add_rocm()
    assert machine.probe().reason == "no NVIDIA GPU: there is no /dev/nvidia0"
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert machine.probe().reason is not None
    (tmp_path / "dev/nvidia0").touch()
    assert machine.probe().reason is None


def test_this_machine_names_the_library_that_the_provider_needs():
    """The reason given must be the one that the dynamic loader gives."""
    import ctypes

    library = probe.installation().libraries / ROCM.library
    with pytest.raises(OSError) as caught:
        ctypes.CDLL(str(library))
    named = str(caught.value).partition(":")[0]
    answer = probe.probe(ROCM, BUILT_IN, library.parent)
    assert named in answer.reason
    assert named.endswith(".so.3")


def test_two_packages_at_once(monkeypatch):
    packages = {"onnxruntime": "1.22.0", "onnxruntime-rocm": "1.22.2"}
    monkeypatch.setattr(probe, "installed_packages", lambda: packages)
    with pytest.raises(ProviderError, match=r"onnxruntime and onnxruntime-rocm are both installed .*pip uninstall"):
        probe.installation()


def test_no_package_at_all(monkeypatch):
    monkeypatch.setattr(probe, "installed_packages", dict)
    monkeypatch.setattr(probe.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProviderError, match=r"onnxruntime is not installed: .*rocline\[rocm\]"):
        probe.installation()


def test_the_package_of_this_environment():
    import onnxruntime

    found = probe.installation()
    assert found.package in probe.DISTRIBUTIONS
    assert found.version.startswith(onnxruntime.__version__)
    assert (found.libraries / "libonnxruntime_providers_shared.so").is_file()
