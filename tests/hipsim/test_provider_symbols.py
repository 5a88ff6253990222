"""What ONNX Runtime's ROCm provider wants of the ROCm libraries, and what the simulated ones offer."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from elf_symbols import read_symbols
from simulated_device import FOLDER, kinds, run

from rocline.runtime.elf import read_dynamic
from rocline.runtime.probe import installation
from rocline.runtime.providers import PROVIDERS

PROVIDER = installation().libraries / PROVIDERS["rocm"].library
SYMBOLS = FOLDER / "provider_symbols.txt"
STUBS = FOLDER / "provider_stubs.txt"


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("hipsim_build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wanted(build):
    """The provider's undefined symbols that come from ROCm: name, version, by library."""
    symbols = [(symbol.name, symbol.version) for symbol in read_symbols(PROVIDER) if not symbol.defined]
    return {row: {one for one in symbols if re.match(row.pattern, one[0])} for row in build.LIBRARIES}


@pytest.fixture(scope="module")
def offered(build):
    folder = build.build()
    return {
        row: {(one.name, one.version): one for one in read_symbols(folder / row.name) if one.defined}
        for row in build.LIBRARIES
    }


def test_the_simulated_libraries_are_those_that_the_provider_needs(build):
    rocm = re.compile(r"lib(amdhip64|hip|rocm|MIOpen|roc|hsa)")
    needed = {name for name in read_dynamic(PROVIDER).needed if rocm.match(name)}
    assert needed == {row.name for row in build.LIBRARIES}
    for row in build.LIBRARIES:
        assert read_dynamic(build.build() / row.name).soname == row.name


def test_the_list_of_symbols_is_the_providers(build, wanted):
    listed = set(build.provider_symbols())
    assert listed == set().union(*wanted.values()), f"{SYMBOLS.name}: write the provider's undefined symbols"


def test_each_is_offered_in_its_version(wanted, offered):
    for row, symbols in wanted.items():
        assert symbols <= offered[row].keys(), row.name


def test_what_is_not_simulated_is_listed(wanted, offered):
    stubs = {name for row, symbols in wanted.items() for name, version in symbols if offered[row][name, version].weak}
    assert stubs == set(STUBS.read_text().split())


def test_a_call_of_a_stub_is_reported():
    code = (
        "import ctypes\n"
        "library = ctypes.CDLL('libMIOpen.so.1')\n"
        "assert library.miopenPoolingForward() == 6  # miopenStatusNotImplemented\n"
    )
    done = run([sys.executable, "-c", code])
    assert done.status == 86
    assert done.findings == ["unimplemented: miopenPoolingForward is called, which hipsim does not simulate"]


def test_a_kernel_that_is_not_emulated_fails_by_name(tmp_path):
    program = Path(__file__).parent / "programs" / "unknown_kernel.py"
    done = run([sys.executable, program])
    assert "hipErrorInvalidDeviceFunction" in done.output
    assert [kinds(done.findings), "onnxruntime::rocm::TriluKernel<int, true>(" in done.findings[0]] == [
        ["unknown kernel"],
        True,
    ]
