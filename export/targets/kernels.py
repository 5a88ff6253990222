"""Lists the kernels that an ONNX Runtime wheel has for one provider, as the ``*_kernels.txt`` files here hold them.

    python -m rocline.export.targets.kernels WHEEL_OR_LIBRARY --provider rocm > rocm_kernels.txt
    python -m rocline.export.targets.kernels --provider cuda > cuda_kernels.txt

The second form asks the onnxruntime that is installed, which must find the libraries of all its providers; it is for
wheels that are stripped of their symbols. The first needs nothing: ONNX Runtime registers a kernel through a template,
``BuildKernelCreateInfo<...>``, whose argument is a class named after the provider, operator, domain, versions and
types, and these names stay in the library's symbol table.

A line is ``DOMAIN OPERATOR VERSIONS [TYPES ...]``: versions ``7-12`` or ``13-`` (and later); types as NumPy names them,
``a/b`` where one kernel is named after several type parameters at once, and none at all where a name tells none
(operators that only move data, mostly). An installed onnxruntime tells them for those too.
"""

import argparse
import mmap
import re
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rocline.errors import ExportError

_PROVIDERS = {"cpu": "Cpu", "cuda": "Cuda", "rocm": "Rocm"}
# Domains of classical machine learning and of ONNX Runtime's internal layouts never occur in an export.
_DOMAINS = {"kOnnxDomain": "ai.onnx", "kMSDomain": "com.microsoft"}
_TYPES = {
    "BFloat16": "bfloat16",
    "MLFloat16": "float16",
    "float": "float32",
    "double": "float64",
    "double_t": "float64",
    "bool": "bool",
    "string": "string",
    "Int4x2": "int4",
    "UInt4x2": "uint4",
    **{f"Float8E{kind}": f"float8e{kind.lower()}" for kind in ("4M3FN", "4M3FNUZ", "5M2", "5M2FNUZ")},
    **{f"{sign}int{bits}_t": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_TYPE = "|".join(_TYPES)
# ONNX's names of the same types.
_TENSORS = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in _TYPES.values() if name not in ("float32", "float64")},
}
_OPEN = 2**31 - 1  # the version until which an open-ended kernel is registered
_KERNEL = re.compile(
    rf"(?P<op>\w+?)_(?P<domain>k\w+?Domain)_ver(?P<since>\d+)(?:_(?P<until>\d+))?"
    rf"(?P<types>(?:_(?:{_TYPE}))*)"
)


def kernel_names(library: Path, provider: str) -> set[str]:
    """Returns the raw names, e.g. ``Add_kOnnxDomain_ver13_13_float``, of the kernels for ``provider`` in a library."""
    # In a mangled name an identifier follows its length: "47kRocmExecutionProvider_Einsum_kOnnxDomain_ver12".
    prefix = f"k{_PROVIDERS[provider]}ExecutionProvider_".encode()
    pattern = re.compile(rb"BuildKernelCreateInfoINS\w*?_(\d+)(?=" + prefix + rb")")
    names = set()
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for match in pattern.finditer(data):
            identifier = data[match.end() : match.end() + int(match[1])]
            names.add(identifier[len(prefix) :].decode("ascii"))
    return names


def tidy(names: Iterable[str]) -> list[str]:
    """Returns the lines of a ``*_kernels.txt`` file for raw kernel names, sorted.

    Raises:
        ExportError: a name is not understood.
    """
    kernels: defaultdict[tuple[str, str, int, str], set[str]] = defaultdict(set)
    for name in names:
        if not any(f"_{domain}_" in name for domain in _DOMAINS):
            continue
        match = _KERNEL.fullmatch(name)
        if match is None:
            raise ExportError(f"kernel {name!r}: expected OPERATOR_kDOMAIN_verSINCE[_UNTIL][_TYPE...]")
        types = kernels[_DOMAINS[match["domain"]], match["op"], int(match["since"]), match["until"] or ""]
        if match["types"]:
            types.add("/".join(_TYPES[kind] for kind in re.findall(rf"_({_TYPE})(?=_|$)", match["types"])))
    return _lines(kernels)


def _lines(kernels: Mapping[tuple[str, str, int, str], Iterable[str]]) -> list[str]:
    return [
        " ".join([domain, op, f"{since}-{until}", *sorted(types)])
        for (domain, op, since, until), types in sorted(kernels.items())
    ]


def read_kernels(source: Path, provider: str) -> list[str]:
    """Returns the tidy lines for every library of ``source``: a wheel or one shared library.

    Raises:
        ExportError: the source holds no kernel names for the provider (another provider's wheel, or stripped).
    """
    names: set[str] = set()
    for library in _libraries(source):
        names |= kernel_names(library, provider)
    if not names:
        raise ExportError(f"{source}: no kernel names of provider {provider!r}; expected its wheel, with symbols")
    return tidy(names)


def installed_kernels(provider: str, definitions: Iterable[Any]) -> list[str]:
    """Returns the tidy lines for what an installed onnxruntime registers.

    Args:
        provider: ``cpu``, ``cuda`` or ``rocm``.
        definitions: its KernelDefs: of operators with a type parameter T, T's types are listed, of others all types.

    Raises:
        ExportError: none of them is for the provider.
    """
    kernels: defaultdict[tuple[str, str, int, str], set[str]] = defaultdict(set)
    for definition in definitions:
        domain = definition.domain or "ai.onnx"
        if definition.provider != f"{_PROVIDERS[provider].upper()}ExecutionProvider" or domain not in _DOMAINS.values():
            continue
        since, until = definition.version_range
        constraints = definition.type_constraints
        groups = [constraints["T"]] if "T" in constraints else constraints.values()
        types = kernels[domain, definition.op_name, since, str(until) if until < _OPEN else ""]
        types.update(_TENSORS[name] for group in groups for name in group if name in _TENSORS)
    if not kernels:
        raise ExportError(f"onnxruntime: no kernels of provider {provider!r}; expected a wheel that has it")
    return _lines(kernels)


def _libraries(source: Path) -> Iterator[Path]:
    if not zipfile.is_zipfile(source):
        yield source
        return
    with zipfile.ZipFile(source) as wheel, tempfile.TemporaryDirectory() as folder:
        for member in wheel.namelist():
            if re.search(r"\.so(\.[\d.]+)?$", member):
                yield Path(wheel.extract(member, folder))


def main() -> None:
    """Prints the list for the wheel or library named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m rocline.export.targets.kernels", description="Kernels of a wheel.")
    parser.add_argument(
        "source",
        type=Path,
        nargs="?",
        help="an ONNX Runtime wheel, or the provider's shared library; else the installed",
    )
    parser.add_argument("--provider", choices=_PROVIDERS, default="rocm")
    arguments = parser.parse_args()
    try:
        if arguments.source is not None:
            lines = read_kernels(arguments.source, arguments.provider)
        else:
            from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

            lines = installed_kernels(arguments.provider, get_all_opkernel_def())
        print("\n".join(lines))
    except (ExportError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
