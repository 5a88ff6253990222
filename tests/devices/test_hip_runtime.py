"""One HIP runtime in the process, the provider's own, whatever else lies about; real files, in child processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import simulated_device
from fake_machine import write_library

from rocline import DeviceError
from rocline.runtime.devices import hip_runtime
from rocline.runtime.libraries import Loader

PROVIDER = "libonnxruntime_providers_rocm.so"
NAME, OLD = "libamdhip64.so.7", "libamdhip64.so.5"

OPEN = """
from pathlib import Path
from rocline import DeviceError
from rocline.runtime.devices import hip_runtime, open_device
try:
    with open_device("hip") as device:
        assert device.create_stream().handle
except DeviceError as error:
    print(error)
else:
    print(*hip_runtime.mapped_runtimes(Path("/proc/self/maps")))
"""


@pytest.fixture(scope="module")
def simulated():
    """The simulated runtime's file, which stands for any."""
    command = [simulated_device.FOLDER / "run", "printenv", "LD_LIBRARY_PATH"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return (Path(printed.strip().split(":")[0]) / NAME).resolve()


@pytest.fixture
def place(simulated, tmp_path):
    """Copies the runtime into a folder, under a name; an old one has another soname too, and its link."""

    def place(folder, name=NAME, link=False):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(simulated, path)
        if name == OLD:
            path.write_bytes(path.read_bytes().replace(NAME.encode(), OLD.encode()))
        if link:
            (path.parent / "libamdhip64.so").symlink_to(name)
        return path

    return place


def opened(*folders, before="", packages=None):
    """What a process prints that opens a device: the runtimes it has mapped, or the error."""
    environ = {key: value for key, value in os.environ.items() if key not in ("LD_LIBRARY_PATH", "ROCM_PATH")}
    environ["LD_LIBRARY_PATH"] = ":".join(map(str, folders))
    if packages:
        environ["PYTHONPATH"] = str(packages)
    ran = subprocess.run([sys.executable, "-c", before + OPEN], env=environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_only_the_versioned_file(place):
    ours = place("rocm")
    assert opened(ours.parent) == str(ours)


def test_the_unversioned_file_is_another(place):
    ours, other = place("rocm"), place("rocm", "libamdhip64.so")
    assert not other.samefile(ours)
    assert opened(ours.parent) == str(ours)


def test_the_unversioned_name_is_a_link(place):
    ours = place("rocm", link=True)
    assert opened(ours.parent) == str(ours)


def test_an_old_runtime_of_the_distribution_comes_first(place):
    old, ours = place("debian", OLD, link=True), place("rocm")
    assert opened(old.parent, ours.parent) == str(ours)


@pytest.fixture
def wheels(place, tmp_path):
    """AMD's rocm_sdk wheels as hip-python sees them: a module that knows where its copy of a library is."""
    copy = place("site/_rocm_sdk_core/lib")
    module = tmp_path / "site" / "rocm_sdk.py"
    module.write_text(f"from pathlib import Path\ndef find_libraries(*names): return [Path({str(copy)!r})]\n")
    return copy


def test_another_copy_in_the_rocm_sdk_wheels(place, wheels):
    ours = place("rocm")
    assert opened(ours.parent, packages=wheels.parents[2]) == str(ours)


def test_the_rocm_sdk_wheels_copy_is_loaded_already(wheels):
    """Then it is what the provider gets, since the loader knows it by its name."""
    before = f"import ctypes\nctypes.CDLL({str(wheels)!r})\n"
    assert opened(before=before, packages=wheels.parents[2]) == str(wheels)


def test_another_runtime_is_loaded_already(place):
    old, ours = place("debian", OLD), place("rocm")
    message = opened(ours.parent, before=f"import ctypes\nctypes.CDLL({str(old)!r})\n")
    assert message.startswith(
        f"two HIP runtimes: {old} is loaded in this process, but ONNX Runtime's provider uses {ours}"
    )


def test_hip_python_was_used_before_and_chose_another(place):
    old, ours = place("debian", OLD, link=True), place("rocm")
    message = opened(old.parent, ours.parent, before="from hip import hip\nhip.hipGetDeviceCount()\n")
    assert message.startswith(
        f"two HIP runtimes: {old} is loaded in this process, but ONNX Runtime's provider uses {ours}"
    )


def test_another_runtime_is_loaded_later(place):
    old, ours = place("debian", OLD), place("rocm")
    before = OPEN + f"import ctypes\nctypes.CDLL({str(old)!r})\n"
    first, second = opened(ours.parent, before=before).splitlines()
    assert first == str(ours)
    assert second.startswith(f"two HIP runtimes: {old} is loaded")


def test_none_at_all():
    assert opened().startswith(f"{NAME} not found (needed by {PROVIDER}): install the ROCm that this onnxruntime was")


def test_without_hip_python(place):
    message = opened(place("rocm").parent, before="import sys\nsys.modules['rocm'] = None\n")
    assert message.startswith("hip-python cannot be imported (")
    assert message.endswith("): run pip install 'rocline[rocm]'")


def test_a_library_that_is_none(place):
    broken = place("rocm")
    broken.write_bytes(b"\x7fELF nothing")
    assert opened(broken.parent).startswith(f"{broken}: cannot be loaded: ")


def loader(root, **environ):
    return Loader(root=root, environ=environ, maps=root / "maps")


def test_the_providers_own_search_path_counts(tmp_path):
    provider = write_library(tmp_path / "ort" / PROVIDER, needed=("libc.so.6", NAME), runpath="/opt/rocm/lib")
    wanted = write_library(tmp_path / "opt/rocm/lib" / NAME, soname=NAME)
    write_library(tmp_path / "usr/lib" / NAME, soname=NAME)
    assert hip_runtime.provider_runtime(provider, loader(tmp_path)) == wanted


def test_links_are_followed(tmp_path):
    """As the process's maps show files."""
    provider = write_library(tmp_path / "ort" / PROVIDER, needed=(NAME,), runpath="/opt/rocm/lib")
    real = write_library(tmp_path / "opt/rocm-7.2.4/lib/libamdhip64.so.7.2.70204", soname=NAME)
    (tmp_path / "opt/rocm-7.2.4/lib" / NAME).symlink_to(real.name)
    (tmp_path / "opt/rocm").symlink_to("rocm-7.2.4")
    assert hip_runtime.provider_runtime(provider, loader(tmp_path)) == real


@pytest.mark.parametrize(
    ("needed", "others", "message"),
    [
        ((NAME,), (), rf"^{NAME} not found \(needed by {PROVIDER}\): install the ROCm"),
        ((NAME,), (OLD,), rf"^{NAME} not found \(needed by {PROVIDER}\), only .*/usr/lib/{OLD}: install"),
        (("libc.so.6",), (), rf"{PROVIDER} needs no libamdhip64.so$"),
    ],
)
def test_what_is_missing_is_named(tmp_path, needed, others, message):
    provider = write_library(tmp_path / PROVIDER, needed=needed)
    for name in others:
        write_library(tmp_path / "usr/lib" / name, soname=name)
    with pytest.raises(DeviceError, match=message):
        hip_runtime.provider_runtime(provider, loader(tmp_path))


def test_an_unreadable_provider(tmp_path):
    with pytest.raises(DeviceError, match=f"{PROVIDER}: .*No such file"):
        hip_runtime.provider_runtime(tmp_path / PROVIDER, loader(tmp_path))


def test_an_onnxruntime_without_a_provider_for_amd(monkeypatch, tmp_path):
    from rocline.runtime import probe

    monkeypatch.setattr(probe, "installation", lambda: probe.Installation("onnxruntime", "1.32", tmp_path))
    with pytest.raises(
        DeviceError, match=rf"onnxruntime has no provider for AMD GPUs \({PROVIDER} or .*: run pip install"
    ):
        hip_runtime.provider_library()


def test_the_process_maps_are_read(tmp_path):
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f10 r--p 00000000 08:01 12   /opt/my rocm/lib/libamdhip64.so.7.2.70204\n"
        "7f10-7f20 r-xp 00001000 08:01 12   /opt/my rocm/lib/libamdhip64.so.7.2.70204\n"
        "7f20-7f30 rw-p 00000000 00:00 0\n"
        "7f30-7f40 r--p 00000000 08:01 13   /usr/lib/libc.so.6\n"
    )
    assert hip_runtime.mapped_runtimes(maps) == [Path("/opt/my rocm/lib/libamdhip64.so.7.2.70204")]
