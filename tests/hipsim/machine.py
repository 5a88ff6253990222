"""What a simulated machine has besides its libraries: /dev/kfd and /sys/class/kfd, and our kernels for its waves.

A library that is preloaded into the command (src/paths) leads these paths to a folder; everything else is the real
machine's.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import kernels

import build

SOURCE = build.SOURCES / "paths" / "paths.cc"

KFD = ("present", "none", "empty", "unreadable")
"""What HIPSIM_KFD takes: a GPU that may be used; no driver; a driver without a GPU; a GPU that may not be opened."""


def gfx_target_version(architecture: str) -> int:
    """What the driver writes for an architecture: 90010 for gfx90a, 110000 for gfx1100 (Linux, kfd_topology.c)."""
    name = re.fullmatch(r"gfx(\d+)([0-9a-f])([0-9a-f])", architecture.partition(":")[0])
    if not name:
        raise SystemExit(f"hipsim: HIPSIM_ARCH is {architecture!r}, expected the name of a GPU such as gfx90a")
    major, minor, step = int(name[1]), int(name[2], 16), int(name[3], 16)
    return major * 10000 + minor * 100 + step


def write_machine(root: Path, architecture: str, kfd: str) -> None:
    """Writes the files below ``root``.

    Args:
        root: a folder that does not exist.
        architecture: of the one GPU, as ``gfx90a``.
        kfd: one of `KFD`.
    """
    if kfd not in KFD:
        raise SystemExit(f"hipsim: HIPSIM_KFD is {kfd!r}, expected one of {', '.join(KFD)}")
    root.mkdir(parents=True)
    if kfd == "none":
        return
    (root / "dev").mkdir()
    (root / "dev" / "kfd").touch(mode=0o000 if kfd == "unreadable" else 0o666)
    # Node 0 is the CPU.
    versions = [0] if kfd == "empty" else [0, gfx_target_version(architecture)]
    for number, version in enumerate(versions):
        node = root / "sys" / "class" / "kfd" / "kfd" / "topology" / "nodes" / str(number)
        node.mkdir(parents=True)
        text = f"cpu_cores_count {int(not version)}\nsimd_count {480 * bool(version)}\ngfx_target_version {version}\n"
        (node / "properties").write_text(f"{text}vendor_id {4098 * bool(version)}\n")


def _compile(out: Path) -> None:
    build.run([*build.compiler(), *build.FLAGS, "-shared", str(SOURCE), "-ldl", "-o", str(out)])


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that put a command into the machine which HIPSIM_ARCH, HIPSIM_DEVICES and HIPSIM_KFD describe.

    HIPSIM_KFD is "present" unless given, or "none" where HIPSIM_DEVICES is 0.
    """
    architecture = environ.get("HIPSIM_ARCH") or "gfx90a"
    kfd = environ.get("HIPSIM_KFD") or ("none" if environ.get("HIPSIM_DEVICES") == "0" else "present")
    flags = " ".join([*build.compiler(), *build.FLAGS]).encode()
    key = build.digest([flags, SOURCE.read_bytes()])
    library = build.made(build.CACHE / f"paths-{key}.so", _compile)
    name = f"{architecture.partition(':')[0]}-{kfd}-{build.digest([Path(__file__).read_bytes()])}"
    root = build.made(build.CACHE / "machines" / name, lambda path: write_machine(path, architecture, kfd))
    preload = [str(library), *filter(None, [environ.get("LD_PRELOAD")])]
    # Generation 9, GCN and CDNA, runs waves of 64; RDNA is compiled for waves of 32.
    wave = 64 if gfx_target_version(architecture) // 10000 == 9 else 32
    made = kernels.build_kernels(wave)
    return {"HIPSIM_ROOT": str(root), "HIPSIM_KERNELS": str(made), "LD_PRELOAD": ":".join(preload)}
