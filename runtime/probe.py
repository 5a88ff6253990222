"""Whether a provider can run on this machine, asked before ONNX Runtime is: no HIP or CUDA call, nothing is loaded.

ONNX Runtime drops a provider that it cannot load with a line on stderr and no error; a probe names the reason and the
way out instead.
"""

import contextlib
import grp
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from rocline.errors import ProviderError
from rocline.runtime.elf import ElfError, code_objects, read_dynamic
from rocline.runtime.libraries import Loader, Missing
from rocline.runtime.providers import CPU, PROVIDERS, Provider

DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
)
"""Packages that install the module ``onnxruntime``; two of them overwrite each other."""


@dataclass(frozen=True)
class Device:
    """One GPU: its architecture (``gfx942``; empty if the system does not tell) and where the system lists it."""

    architecture: str
    path: Path


@dataclass(frozen=True)
class Probe:
    """The answer for one provider.

    Attributes:
        provider: the row of the table.
        reason: why it cannot run here; None if it can.
        fix: what to do about it; empty if it can.
    """

    provider: Provider
    reason: str | None = None
    fix: str = ""


@dataclass(frozen=True)
class Installation:
    """The onnxruntime of this environment: the package that installed it, its version, and its folder of libraries."""

    package: str
    version: str
    libraries: Path


@dataclass(frozen=True)
class Machine:
    """What a probe looks at.

    Attributes:
        root: folder that stands for ``/``.
        environ: the environment.
        access: whether this process may read and write a device file.
    """

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    access: Callable[[Path], bool] = lambda path: os.access(path, os.R_OK | os.W_OK)


def installed_packages() -> dict[str, str]:
    """Returns the version of each installed package that provides the module ``onnxruntime``."""
    found = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def installation() -> Installation:
    """Returns the onnxruntime of this environment, without importing it.

    Raises:
        ProviderError: there is none, or more than one package provides it.
    """
    packages = installed_packages()
    if len(packages) > 1:
        names = " and ".join(packages)
        raise ProviderError(
            f"{names} are both installed and overwrite each other's module 'onnxruntime': "
            f"run 'pip uninstall -y {' '.join(packages)}', then install one"
        )
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise ProviderError(
            "onnxruntime is not installed: run \"pip install 'rocline[rocm]'\" for an AMD GPU, "
            "or \"pip install 'rocline[cpu]'\""
        )
    name, version = next(iter(packages.items()), ("onnxruntime (no package)", ""))
    return Installation(name, version, Path(spec.origin).parent / "capi")


def probe(
    provider: Provider,
    built_in: frozenset[str],
    libraries: Path,
    *,
    device_id: int = 0,
    machine: Machine | None = None,
) -> Probe:
    """Answers whether ``provider`` can run here.

    Args:
        provider: a row of the table.
        built_in: ONNX Runtime's names of the providers this onnxruntime was built with.
        libraries: the folder of onnxruntime's provider libraries.
        device_id: which GPU is wanted.
        machine: where to look; this machine if None.
    """
    if provider is CPU:
        return Probe(provider)
    machine = machine or Machine()
    if provider.ort_name not in built_in:
        return Probe(
            provider,
            f"this onnxruntime is built without {provider.ort_name}",
            f"install rocline[{provider.extra}] in an environment of its own",
        )
    assert provider.library and provider.vendor
    library = libraries / provider.library
    failure = (
        _check_libraries(provider, library, machine)
        or DEVICES[provider.vendor].check(machine)
        or _check_device(provider, library, device_id, machine)
    )
    return Probe(provider, *failure) if failure else Probe(provider)


_Failure = tuple[str, str] | None


def _check_libraries(provider: Provider, library: Path, machine: Machine) -> _Failure:
    if not library.is_file():
        return f"{library} is missing", f"reinstall the onnxruntime of rocline[{provider.extra}]"
    missing = Loader(machine.root, machine.environ).missing(library)
    if not missing:
        return None
    version = _stack_version(library)
    stack = f"{provider.stack} {version}" if version else provider.stack
    return (
        "; ".join(_describe(missing)),
        f"install {stack}, or set LD_LIBRARY_PATH to the folder of its libraries",
    )


def _describe(missing: list[Missing]) -> list[str]:
    """Says what is missing: first what is not there at all, by who needs it, then what is there in another version."""
    absent: dict[str, list[str]] = {}
    for library in missing:
        if not library.others:
            absent.setdefault(library.needed_by, []).append(library.name)
    parts = [f"{', '.join(names)} not found (needed by {needed_by})" for needed_by, names in absent.items()]
    return parts + [
        f"{library.name} not found (needed by {library.needed_by}), only {', '.join(map(str, library.others))}"
        for library in missing
        if library.others
    ]


def _stack_version(library: Path) -> str:
    """Returns the version in the folder names that the library was linked to look in, e.g. ``7.2.4``."""
    match = re.search(r"/rocm-(\d[\d.]*)", ":".join(read_dynamic(library).search))
    return match[1] if match else ""


def _check_device(provider: Provider, library: Path, device_id: int, machine: Machine) -> _Failure:
    kind = DEVICES[provider.vendor or ""]
    devices = kind.find(machine)
    # Such a variable renumbers the devices: then only the set of them is known, not which one is number device_id.
    renumbered = any(machine.environ.get(name) for name in kind.visibility)
    if not renumbered:
        if device_id >= len(devices):
            numbers = "0" if len(devices) == 1 else f"0 to {len(devices) - 1}"
            return f"no GPU has device_id {device_id}, only {numbers}", "choose another device_id"
        devices = devices[device_id : device_id + 1]
    try:
        architectures = code_objects(library)
    except ElfError:
        architectures = ()
    wanted = {device.architecture for device in devices} - {""}
    # A generic code object serves a family of architectures that its name does not list.
    generic = any(name.endswith("-generic") for name in architectures)
    if not architectures or not wanted or generic or wanted & set(architectures):
        return None
    return (
        f"{library.name} has no code for {', '.join(sorted(wanted))}, only for {', '.join(architectures)}",
        "use an onnxruntime built for this GPU, or rocline[migraphx]",
    )


@dataclass(frozen=True)
class DeviceKind:
    """How one vendor's GPUs are found.

    Attributes:
        find: lists them.
        check: says why none can be used, or None.
        visibility: environment variables that hide or renumber them.
    """

    find: Callable[[Machine], list[Device]]
    check: Callable[[Machine], _Failure]
    visibility: tuple[str, ...]


def _amd_devices(machine: Machine) -> list[Device]:
    override = machine.environ.get("HSA_OVERRIDE_GFX_VERSION", "")
    devices = []
    nodes = (machine.root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties")
    for path in sorted(nodes, key=lambda path: int(path.parent.name)):
        match = re.search(r"^gfx_target_version (\d+)$", path.read_text(), re.MULTILINE)
        version = int(match[1]) if match else 0
        # A node with version 0 is a CPU.
        if version:
            parts = (version // 10000, version // 100 % 100, version % 100)
            if re.fullmatch(r"\d+\.\d+\.\d+", override):
                major, minor, step = map(int, override.split("."))
                parts = (major, minor, step)
            devices.append(Device(f"gfx{parts[0]}{parts[1]:x}{parts[2]:x}", path.parent))
    return devices


def _check_amd(machine: Machine) -> _Failure:
    kfd = machine.root / "dev/kfd"
    if not kfd.exists():
        return (
            "no AMD GPU: there is no /dev/kfd",
            "load the amdgpu driver; in a container pass --device /dev/kfd /dev/dri",
        )
    if not _amd_devices(machine):
        return "no AMD GPU: /sys/class/kfd lists none", "check that the amdgpu driver knows this GPU (dmesg)"
    if not machine.access(kfd):
        group = _group(kfd)
        return (
            f"this user may not open /dev/kfd, which belongs to group {group}",
            f"run 'sudo usermod -aG {','.join(dict.fromkeys((group, 'render', 'video')))} $USER' and log in again",
        )
    return None


def _group(path: Path) -> str:
    number = path.stat().st_gid
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _nvidia_devices(machine: Machine) -> list[Device]:
    return [Device("", path) for path in sorted((machine.root / "dev").glob("nvidia[0-9]*"))]


def _check_nvidia(machine: Machine) -> _Failure:
    if _nvidia_devices(machine):
        return None
    return "no NVIDIA GPU: there is no /dev/nvidia0", "install the NVIDIA driver; in a container pass --gpus all"


DEVICES: Mapping[str, DeviceKind] = {
    "amd": DeviceKind(
        _amd_devices, _check_amd, ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    ),
    "nvidia": DeviceKind(_nvidia_devices, _check_nvidia, ("CUDA_VISIBLE_DEVICES",)),
}
"""The vendors of the provider table."""


def probe_all(*, machine: Machine | None = None) -> list[Probe]:
    """Probes every provider of the table against the onnxruntime of this environment.

    Raises:
        ProviderError: there is no onnxruntime, or more than one package provides it.
    """
    libraries = installation().libraries
    import onnxruntime

    built_in = frozenset(onnxruntime.get_available_providers())
    return [probe(provider, built_in, libraries, machine=machine) for provider in PROVIDERS.values()]
