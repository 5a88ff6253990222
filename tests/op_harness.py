"""Runs an op's cases through ONNX Runtime, with every buffer between guard pages; shared by CPU and GPU tests."""

import ctypes
import dataclasses
import mmap
import zlib

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

from rocline import custom_ops

ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "bool": TensorProto.BOOL,
}
PAGE = mmap.PAGESIZE
PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2


def numpy_dtype(name):
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def dtype_of(argument, dtype):
    return dtype if argument.dtype == "T" else argument.dtype


def make_inputs(spec, case, dtype):
    """The case's arrays in the dtypes the op takes; the seed is the case's own."""
    rng = np.random.default_rng(zlib.crc32(f"{spec.name} {case.name}".encode()))
    arrays = {}
    for argument in spec.inputs:
        if argument.name in case.inputs:
            source = case.inputs[argument.name]
            array = source(rng) if callable(source) else rng.standard_normal(source, dtype=np.float32)
            arrays[argument.name] = np.asarray(array).astype(numpy_dtype(dtype_of(argument, dtype)))
    return arrays


def output_arguments(spec, case):
    return list(spec.outputs)[: case.outputs if case.outputs is not None else len(spec.outputs)]


def expected(spec, case, arrays):
    """The reference's outputs: floats as float32, from the inputs as the dtype under test holds them."""
    floats = {a.name for a in spec.inputs if a.dtype == "T"}
    widened = {name: array.astype(np.float32) if name in floats else array for name, array in arrays.items()}
    return spec.reference(widened, case.attributes)


def replace_attributes(case, attributes):
    return dataclasses.replace(case, attributes=attributes)


def make_model(spec, case, dtype, arrays, types=None):
    """A graph of the one node, with symbolic dimensions, as serialised bytes.

    types: input name -> element name, where it is to differ from what the spec says.
    """
    inputs = [
        helper.make_tensor_value_info(
            a.name,
            ELEMENTS[(types or {}).get(a.name, dtype_of(a, dtype))],
            [f"{a.name}{i}" for i in range(arrays[a.name].ndim)],
        )
        for a in spec.inputs
        if a.name in arrays
    ]
    names = [a.name for a in output_arguments(spec, case)]
    # In place: input and output share a buffer, not a name.
    node = helper.make_node(
        spec.name, [i.name for i in inputs], names, domain=custom_ops.DOMAIN, name="node", **case.attributes
    )
    outputs = [
        helper.make_tensor_value_info(a.name, ELEMENTS[dtype_of(a, dtype)], None) for a in output_arguments(spec, case)
    ]
    graph = helper.make_graph([node], "graph", inputs, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(custom_ops.DOMAIN, custom_ops.VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return model.SerializeToString()


def make_session(model, providers=("CPUExecutionProvider",), *, threads=2):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    custom_ops.register(options)
    return onnxruntime.InferenceSession(model, options, providers=list(providers))


class Guarded:
    """A copy of an array that touches an inaccessible page: after its end, or before its start."""

    def __init__(self, array, at_end=True):
        pages = max(1, -(-array.nbytes // PAGE))
        self.array = array
        self._map = mmap.mmap(-1, (pages + 2) * PAGE)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._inside, self._bytes = self._start + PAGE, pages * PAGE
        self.pointer = self._inside + (self._bytes - array.nbytes if at_end else 0)
        ctypes.memmove(self.pointer, np.ascontiguousarray(array).ctypes.data, array.nbytes)
        self.protect(PROT_READ | PROT_WRITE)

    def protect(self, inside):
        libc = ctypes.CDLL(None, use_errno=True)
        for address, size, protection in (
            (self._start, PAGE, PROT_NONE),
            (self._inside, self._bytes, inside),
            (self._inside + self._bytes, PAGE, PROT_NONE),
        ):
            if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), protection):
                raise OSError(ctypes.get_errno(), "mprotect")

    def value(self):
        raw = ctypes.string_at(self.pointer, self.array.nbytes)
        return np.frombuffer(raw, self.array.dtype).reshape(self.array.shape)


def run_guarded(session, spec, case, dtype, arrays, at_end):
    """Runs with inputs read-only and every buffer against a guard page: a stray access ends the process."""
    binding = session.io_binding()
    aliased = set(case.alias.values())
    buffers = {name: Guarded(array, at_end) for name, array in arrays.items()}
    for name, buffer in buffers.items():
        if name not in aliased:
            buffer.protect(PROT_READ)
    shapes = spec.infer({name: array.shape for name, array in arrays.items()}, {**spec.attributes, **case.attributes})
    for argument in spec.inputs:
        if argument.name in arrays:
            binding.bind_input(
                argument.name,
                "cpu",
                0,
                ELEMENTS[dtype_of(argument, dtype)],
                arrays[argument.name].shape,
                buffers[argument.name].pointer,
            )
    outputs = {}
    for argument in output_arguments(spec, case):
        name, element = argument.name, dtype_of(argument, dtype)
        if name in case.alias:
            outputs[name] = buffers[case.alias[name]]
        else:
            # A kernel must write every element: what it leaves out shows as this pattern.
            poison = np.full(int(np.prod(shapes[name])) * numpy_dtype(element).itemsize, 0xCD, np.uint8)
            outputs[name] = Guarded(poison.view(numpy_dtype(element)).reshape(shapes[name]), at_end)
        binding.bind_output(name, "cpu", 0, ELEMENTS[element], shapes[name], outputs[name].pointer)
    session.run_with_iobinding(binding)
    return {name: buffer.value() for name, buffer in outputs.items()}


def compare(spec, dtype, got, wanted):
    """Fails with the worst element and its place."""
    for name, array in got.items():
        tolerance = spec.tolerance(name, dtype)
        if tolerance is None:
            continue
        reference = np.asarray(wanted[name])
        assert array.shape == reference.shape, f"{spec.name} {name}: shape {array.shape}, expected {reference.shape}"
        if array.dtype.kind in "iub":
            np.testing.assert_array_equal(array, reference, err_msg=f"{spec.name} {name}")
            continue
        values, reference = array.astype(np.float64), reference.astype(array.dtype).astype(np.float64)
        same = (values == reference) | (np.isnan(values) & np.isnan(reference))
        with np.errstate(invalid="ignore"):
            error = np.where(same, 0.0, np.abs(values - reference))
        excess = np.nan_to_num(error - (tolerance.absolute + tolerance.relative * np.abs(reference)), nan=np.inf)
        if excess.size and excess.max() > 0:
            at = np.unravel_index(int(excess.argmax()), excess.shape)
            raise AssertionError(
                f"{spec.name} {dtype} {name}{list(map(int, at))}: {values[at]:.9g}, expected {reference[at]:.9g} "
                f"within {tolerance}; {int((excess > 0).sum())} of {excess.size} elements are off"
            )
