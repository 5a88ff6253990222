"""The module interface of the simulated device, and what it says about a kernel's accesses."""

import sys

import pytest
from simulated_device import MODES, PROGRAMS, cases, kinds, run

from rocline.custom_ops import code_object_folders
from rocline.custom_ops.build import EXACT, GENERIC

OBJECTS = code_object_folders()[-1]
INVALID_CONFIGURATION, INVALID_IMAGE, NO_BINARY, NOT_FOUND, NOT_SUPPORTED = 9, 200, 209, 500, 801

EXPECTED = {
    "a_kernel_computes": ([], [0, [1.5]]),
    "a_kernel_is_captured": ([], [[0.0], [1.5]]),
    "two_streams_race": (["race"], None),
    "two_streams_that_read_do_not": ([], None),
    "beyond_the_end": (["out of bounds"], None),
    "memory_of_the_host": (["illegal address"], [1.0]),
    "code_for_another_gpu": ([], [0, NO_BINARY, NO_BINARY, NO_BINARY]),
    "not_a_code_object": ([], INVALID_IMAGE),
    "a_kernel_that_is_not_there": ([], NOT_FOUND),
    "bad_launches": ([], [INVALID_CONFIGURATION, INVALID_CONFIGURATION, NOT_SUPPORTED]),
}


@pytest.mark.parametrize("mode", MODES)
def test_cases(mode):
    results = cases("modules.py", mode, arguments=(str(OBJECTS),))
    assert {name: (kinds(row["findings"]), row["returned"]) for name, row in results.items()} == EXPECTED


def test_a_kernel_that_reads_freed_memory_faults():
    done = run([sys.executable, PROGRAMS / "modules.py", OBJECTS, "fault"])
    assert done.status == 128 + 11
    assert done.findings[0].startswith("use after free: add_scale_f32 ")


# One of each family, and the others in the long sweep.
FAMILIES = ("gfx906", "gfx90a", "gfx942", "gfx1030", "gfx1151", "gfx1201")


@pytest.mark.parametrize("gpu", [pytest.param(gpu, marks=() if gpu in FAMILIES else pytest.mark.slow) for gpu in EXACT])
def test_a_gpu_takes_its_code_object_and_its_familys(gpu):
    family = {member: generic for generic, members in GENERIC.items() for member in members}
    code = (
        "import ctypes, pathlib, sys\n"
        "load = ctypes.CDLL('libamdhip64.so.7').hipModuleLoadData\n"
        "for path in sys.argv[1:]:\n"
        "    image = pathlib.Path(path).read_bytes()\n"
        "    print(load(ctypes.byref(ctypes.c_void_p()), ctypes.create_string_buffer(image, len(image))), end=' ')\n"
    )
    names = [gpu, *filter(None, [family.get(gpu)]), "gfx900" if gpu != "gfx900" else "gfx1201"]
    paths = [OBJECTS / name / "swi_glu.co" for name in names]
    done = run([sys.executable, "-c", code, *paths], HIPSIM_ARCH=gpu)
    assert done.output.split() == ["0"] * (len(names) - 1) + [str(NO_BINARY)], done.errors
