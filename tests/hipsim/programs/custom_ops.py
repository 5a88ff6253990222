"""Runs the cases of our operators on the device, each buffer an allocation of its exact size; prints JSON.

Arguments: tests/ (for the harness), the dtypes, and the most elements that a case's inputs may have.
"""

import json
import sys
import time

import numpy as np
from device import D2H, H2D, call, drop, malloc, take_findings

sys.path.insert(0, sys.argv[1])
import op_cases
import op_harness as harness


class Buffers:
    """Device memory that starts with an array's bytes, freed at the end."""

    def __init__(self):
        self.pointers = []

    def make(self, array):
        # ONNX Runtime takes no null pointer, for no bytes either.
        pointer = malloc(max(array.nbytes, 1))
        self.pointers.append(pointer)
        if array.nbytes:
            call("hipMemcpy", pointer, np.ascontiguousarray(array).ctypes.data, array.nbytes, H2D)
        return pointer

    def close(self):
        for pointer in self.pointers:
            drop(pointer)


def read(pointer, shape, dtype):
    array = np.empty(shape, dtype)
    if array.nbytes:
        call("hipMemcpy", array.ctypes.data, pointer, array.nbytes, D2H)
    return array


def run_case(spec, case, dtype, buffers):
    """The op's outputs, from bound device memory."""
    arrays = harness.make_inputs(spec, case, dtype)
    # One thread: on the device there is no work for others, which would spin.
    session = harness.make_session(
        harness.make_model(spec, case, dtype, arrays), ("ROCMExecutionProvider", "CPUExecutionProvider"), threads=1
    )
    assert session.get_providers()[0] == "ROCMExecutionProvider"
    binding = session.io_binding()
    places = {}
    for argument in spec.inputs:
        if argument.name in arrays:
            array, element = arrays[argument.name], harness.ELEMENTS[harness.dtype_of(argument, dtype)]
            places[argument.name] = buffers.make(array)
            binding.bind_input(argument.name, "cuda", 0, element, array.shape, places[argument.name])
    shapes = spec.infer({name: array.shape for name, array in arrays.items()}, {**spec.attributes, **case.attributes})
    outputs = {}
    for argument in harness.output_arguments(spec, case):
        name, element = argument.name, harness.dtype_of(argument, dtype)
        shape, kind = shapes[name], harness.numpy_dtype(element)
        poison = np.full(int(np.prod(shape)) * kind.itemsize, 0xCD, np.uint8)
        place = places[case.alias[name]] if name in case.alias else buffers.make(poison)
        outputs[name] = (place, shape, kind)
        binding.bind_output(name, "cuda", 0, harness.ELEMENTS[element], shape, place)
    session.run_with_iobinding(binding)
    return arrays, {name: read(*output) for name, output in outputs.items()}


def check(spec, case, dtype):
    """What is wrong with one case, or an empty string."""
    buffers = Buffers()
    try:
        arrays, got = run_case(spec, case, dtype, buffers)
        harness.compare(spec, dtype, got, harness.expected(spec, case, arrays))
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        buffers.close()


def elements(spec, case):
    return sum(array.size for array in harness.make_inputs(spec, case, "float32").values())


dtypes, most = sys.argv[2].split(","), int(sys.argv[3])
results = []
for parameters in op_cases.cases():
    spec, case, dtype = parameters.values
    if dtype in dtypes and elements(spec, case) <= most:
        start = time.perf_counter()
        failure = check(spec, case, dtype)
        seconds = time.perf_counter() - start
        results.append([f"{spec.name} {dtype} {case.name}", failure, take_findings(), round(seconds, 2)])
print(json.dumps(results))
