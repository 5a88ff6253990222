"""Lists the kernels that an ONNX Runtime wheel has for one provider, as the ``*_kernels.txt`` files here hold them.

    python -m rocline.export.targets.kernels WHEEL_OR_LIBRARY --provider rocm > rocm_kernels.txt

ONNX Runtime registers a kernel through a template, ``BuildKernelCreateInfo<...>``, whose argument is a class named
after the provider, operator, domain, versions and types. The names stay in the library's symbol table, so the list is
read from the file and needs neither a GPU nor the provider's own libraries.

A line is ``DOMAIN OPERATOR VERSIONS [TYPES ...]``: versions ``7-12`` or ``13-`` (and later); types as NumPy names them,
``a/b`` where one kernel is registered for several type parameters at once, and none at all where one kernel serves
every type it declares (operators that only move data, mostly).
"""

import argparse
import mmap
import re
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

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
    parser.add_argument("source", type=Path, help="an ONNX Runtime wheel, or the provider's shared library")
    parser.add_argument("--provider", choices=_PROVIDERS, default="rocm")
    arguments = parser.parse_args()
    try:
        print("\n".join(read_kernels(arguments.source, arguments.provider)))
    except (ExportError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
