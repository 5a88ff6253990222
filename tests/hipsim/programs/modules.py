"""The module interface: loading our code objects, launching from them, and what is said about a kernel's accesses.

Arguments: the folder of code objects; "fault" for the case that ends the process.
"""

import ctypes
import sys
from ctypes import byref, c_float, c_longlong, c_void_p
from pathlib import Path

import numpy as np
from device import D2H, H2D, attempt, call, capturing, case, drop, main, malloc, stream, synchronize

OBJECTS = Path(sys.argv[1])
ELEMENTS = 64
BYTES = 4 * ELEMENTS


def load(architecture: str = "gfx90a", image: bytes = b"") -> tuple[int, c_void_p]:
    module = c_void_p()
    image = image or (OBJECTS / architecture / "add_scale.co").read_bytes()
    return attempt("hipModuleLoadData", byref(module), ctypes.create_string_buffer(image, len(image))), module


def find(name: str = "add_scale_f32") -> tuple[int, c_void_p]:
    _, module = load()
    function = c_void_p()
    return attempt("hipModuleGetFunction", byref(function), module, name.encode()), function


def launch(a, b, y, on, total=ELEMENTS, scale=0.5, block=256, shared=0, blocks=1):
    """add_scale_f32: y = (a + b) * scale, for one row."""
    _, function = find()
    arguments = [c_void_p(a), c_void_p(b), c_void_p(y), c_longlong(total), c_longlong(total), c_float(scale)]
    pointers = (c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
    status = attempt("hipModuleLaunchKernel", function, blocks, 1, 1, block, 1, 1, shared, on, pointers, None)
    # The launch has its own copy of the arguments.
    for argument in arguments:
        argument.value = 0
    return status


def filled(value: float) -> int:
    pointer = malloc(BYTES)
    call("hipMemcpy", pointer, np.full(ELEMENTS, value, np.float32).ctypes.data, BYTES, H2D)
    synchronize()
    return pointer


def values(pointer: int) -> list[float]:
    synchronize()
    array = np.empty(ELEMENTS, np.float32)
    call("hipMemcpy", array.ctypes.data, pointer, BYTES, D2H)
    return sorted({float(value) for value in array})


@case
def a_kernel_computes():
    y = filled(0)
    return [launch(filled(1), filled(2), y, stream()), values(y)]


@case
def a_kernel_is_captured():
    s, a, b, y = stream(), filled(1), filled(2), filled(0)
    with capturing(s) as graph:
        launch(a, b, y, s)
    before = values(y)
    call("hipGraphLaunch", graph[0], s)
    return [before, values(y)]


@case
def two_streams_race():
    a, y, z = filled(1), filled(0), filled(0)
    launch(a, a, y, stream())
    launch(y, y, z, stream())
    synchronize()


@case
def two_streams_that_read_do_not():
    a, y, z = filled(1), filled(0), filled(0)
    launch(a, a, y, stream())
    launch(a, a, z, stream())
    synchronize()


@case
def beyond_the_end():
    launch(filled(1), filled(1), filled(0), stream(), total=ELEMENTS + 1)
    synchronize()


@case
def memory_of_the_host():
    array = np.ones(ELEMENTS, np.float32)
    a, y = filled(1), filled(0)
    launch(a, array.ctypes.data, y, stream())
    synchronize()
    return values(y)


@case
def code_for_another_gpu():
    return [load(name)[0] for name in ("gfx90a", "gfx942", "gfx1100", "gfx9-generic")]


@case
def not_a_code_object():
    return load(image=b"no code object" * 100)[0]


@case
def a_kernel_that_is_not_there():
    return find("add_scale_f64")[0]


@case
def bad_launches():
    a, y, s = filled(1), filled(0), stream()
    return [launch(a, a, y, s, block=2048), launch(a, a, y, s, blocks=0), launch(a, a, y, s, shared=1024)]


def after_it_was_freed() -> None:
    """The device faults, as there is nothing to read."""
    a, y = filled(1), filled(0)
    drop(a)
    launch(a, a, y, stream())
    synchronize()


if sys.argv[2:] == ["fault"]:
    after_it_was_freed()
else:
    main()
