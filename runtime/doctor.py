"""What this machine can run, and why not: the facts behind ``rocline doctor``."""

import platform
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rocline.errors import ProviderError, RoclineError
from rocline.runtime import probe
from rocline.runtime.libraries import Loader
from rocline.runtime.probe import DEVICES, Machine
from rocline.runtime.providers import resolve


@dataclass(frozen=True)
class ProviderState:
    """One provider: whether it can run here, and if not why and what mends it."""

    name: str
    ort_name: str
    usable: bool
    reason: str | None
    fix: str


@dataclass(frozen=True)
class Gpu:
    """One GPU: vendor, architecture (empty if the system does not tell), and where the system lists it."""

    vendor: str
    architecture: str
    path: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        python: version of Python.
        system: operating system, kernel and processor.
        packages: version by package that provides the module onnxruntime.
        problem: why no model can run at all, or None.
        providers: one entry a provider of the table; empty if there is a problem.
        gpus: the GPUs that the system lists.
        rocm: version of ROCm by folder.
        hip_libraries: the HIP runtimes that the loader would find.
        custom_ops: path of the custom-operator library, or why there is none.
        runs_now: ONNX Runtime's names of the providers that a model gets now, in order.
    """

    python: str
    system: str
    packages: dict[str, str]
    problem: str | None
    providers: tuple[ProviderState, ...]
    gpus: tuple[Gpu, ...]
    rocm: dict[str, str]
    hip_libraries: tuple[str, ...]
    custom_ops: str
    runs_now: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON knows them."""
        return asdict(self)


def diagnose(machine: Machine | None = None) -> Diagnosis:
    """Looks at this machine, or at ``machine``; a missing or doubled onnxruntime is a finding and not an error."""
    machine = machine or Machine()
    problem = None
    states: tuple[ProviderState, ...] = ()
    runs_now: tuple[str, ...] = ()
    try:
        answers = probe.probe_all(machine=machine)
    except (ProviderError, ImportError) as error:
        problem = str(error)
    else:
        states = tuple(
            ProviderState(row.provider.name, row.provider.ort_name, row.reason is None, row.reason, row.fix)
            for row in answers
        )
        usable = {state.ort_name for state in states if state.usable}
        wanted = resolve(None, (state.ort_name for state in states if state.usable))
        runs_now = tuple(row.ort_name for row in wanted if row.ort_name in usable)
    return Diagnosis(
        python=f"{platform.python_version()} ({sys.executable})",
        system=platform.platform(),
        packages=probe.installed_packages(),
        problem=problem,
        providers=states,
        gpus=tuple(
            Gpu(vendor, device.architecture, str(device.path))
            for vendor, kind in DEVICES.items()
            for device in kind.find(machine)
        ),
        rocm=_rocm_versions(machine.root),
        hip_libraries=tuple(map(str, Loader(machine.root, machine.environ).versions("libamdhip64.so"))),
        custom_ops=_custom_ops(),
        runs_now=runs_now,
    )


def _rocm_versions(root: Path) -> dict[str, str]:
    files = sorted((root / "opt").glob("rocm*/.info/version"))
    found = {str(file.parent.parent): file.read_text().strip() for file in files}
    # /opt/rocm is most often a link to one of the others.
    return {folder: re.split(r"[-\s]", version)[0] for folder, version in found.items()}


def _custom_ops() -> str:
    from rocline.custom_ops import library_path

    try:
        return str(library_path())
    except RoclineError as error:
        return f"none: {error}"


def as_text(found: Diagnosis) -> str:
    """Returns the diagnosis for people: one fact a line."""
    packages = ", ".join(f"{name} {version}" for name, version in found.packages.items()) or "none"
    gpus = ", ".join(f"{gpu.vendor} {gpu.architecture or gpu.path}" for gpu in found.gpus) or "none found"
    rocm = ", ".join(f"{version} in {folder}" for folder, version in found.rocm.items()) or "none found"
    lines = [
        f"Python       {found.python}",
        f"System       {found.system}",
        f"ONNX Runtime {packages}",
        f"ROCm         {rocm}",
        f"HIP runtime  {', '.join(found.hip_libraries) or 'none found'}",
        f"Custom ops   {found.custom_ops}",
        f"GPUs         {gpus}",
        "",
    ]
    if found.problem:
        return "\n".join([*lines, f"No model can run: {found.problem}"])
    for state in found.providers:
        lines.append(f"{state.name:<12} {'usable' if state.usable else 'not usable: ' + (state.reason or '')}")
        if not state.usable:
            lines.append(f"{'':<12} to mend it: {state.fix}")
    return "\n".join([*lines, "", f"A model runs now on {', then '.join(found.runs_now)}"])
