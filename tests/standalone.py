"""Runs operators of librocline_ops.so without ONNX Runtime: what a C++ program needs to do, done with ctypes.

A :class:`Host` answers the calls of ``custom_ops/ort/abi.h`` that registering, creating and running a kernel make.
A :class:`Session` is one node in it, with the methods that the tests use of an ``onnxruntime.InferenceSession``.
"""

import ctypes
import itertools
import weakref
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint32, c_void_p
from operator import setitem
from typing import NamedTuple

import numpy as np
import op_harness as harness

API_VERSION, SLOTS = 17, 280
DTYPES = {element: harness.numpy_dtype(name) for name, element in harness.ELEMENTS.items()}
ELEMENTS = {dtype: element for element, dtype in DTYPES.items()}
Part = CFUNCTYPE(None, c_void_p, c_size_t)
GetApi = CFUNCTYPE(c_void_p, c_uint32)


class CustomOp(ctypes.Structure):
    _fields_ = (
        ("version", c_uint32),
        ("CreateKernel", c_void_p),
        ("GetName", CFUNCTYPE(c_char_p, c_void_p)),
        ("GetExecutionProviderType", CFUNCTYPE(c_char_p, c_void_p)),
        ("GetInputType", CFUNCTYPE(c_int, c_void_p, c_size_t)),
        ("counts_output_type_and_older_compute", c_void_p * 4),
        ("KernelDestroy", CFUNCTYPE(None, c_void_p)),
        ("characteristics_and_arities", c_void_p * 7),
        ("CreateKernelV2", CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_void_p))),
        ("KernelComputeV2", CFUNCTYPE(c_void_p, c_void_p, c_void_p)),
        ("inference_versions_and_aliases", c_void_p * 7),
    )


class ApiBase(ctypes.Structure):
    _fields_ = (("GetApi", GetApi), ("GetVersionString", c_void_p))


class OpError(Exception):
    """The message of a status that the library returned."""


class Tensor(NamedTuple):
    """A tensor where the kernel's provider can reach it; ``element`` numbers types as ONNX does."""

    element: int
    shape: tuple
    pointer: int


class Run:
    """What one call of a kernel gets: an output that is None is allocated, in host memory."""

    def __init__(self, inputs, outputs, output_elements, stream):
        self.inputs, self.outputs, self._elements, self.stream = inputs, outputs, output_elements, stream
        self.allocated = [None] * len(outputs)

    def output(self, index, shape):
        tensor = self.outputs[index]
        if tensor is None:
            array = self.allocated[index] = np.empty(shape, DTYPES[self._elements[index]])
            return Tensor(self._elements[index], shape, array.ctypes.data)
        assert tensor.shape == shape, f"output {index}: the kernel asks for {shape}, {tensor.shape} is bound"
        return tensor


class Host:
    """The library, registered with a runtime of our own. Keep it: the library never forgets a runtime's table.

    Raises (every method): OpError with the library's message; AssertionError if it kept a status or tensor info.
    """

    def __init__(self, path):
        self.ops, self._numbers = [], itertools.count(1)
        self._lent = {}  # handle -> an object that is valid during one call of the library
        self._infos = {}  # handle -> Tensor; the library releases these
        self._statuses = {}  # address of its text -> the text; released by whoever receives one
        self._callbacks = self._make_callbacks()
        self._table = (c_void_p * SLOTS)(*(ctypes.cast(callback, c_void_p).value for callback in self._callbacks))
        self._api = ctypes.addressof(self._table)
        self._base = ApiBase(GetApi(lambda version: self._api if version <= API_VERSION else None))
        register = ctypes.CDLL(str(path)).RegisterCustomOps
        register.restype, register.argtypes = c_void_p, (c_void_p, POINTER(ApiBase))
        self._call(register, None, self._base)

    def find(self, name, provider, elements):
        """The first op that takes inputs of these element types, as ONNX Runtime chooses one."""
        name, provider = name.encode(), provider.encode()
        for op in self.ops:
            this = ctypes.addressof(op)
            types = [op.GetInputType(this, index) for index in range(len(elements))]
            if (op.GetName(this), op.GetExecutionProviderType(this), types) == (name, provider, elements):
                return op
        raise LookupError(f"no kernel of {name.decode()} for {provider.decode()} takes inputs of the types {elements}")

    def create(self, op, attributes):
        """A kernel, for ``op.KernelDestroy`` in the end."""
        kernel = c_void_p()
        self._call(op.CreateKernelV2, ctypes.addressof(op), self._api, self._lend(attributes), ctypes.byref(kernel))
        return kernel.value

    def compute(self, op, kernel, run):
        self._call(op.KernelComputeV2, kernel, self._lend(run))

    def _call(self, function, *arguments):
        status = function(*arguments)
        self._lent.clear()
        message = self._statuses.pop(status).value.decode() if status else None
        assert not self._statuses, "the library did not release a status"
        assert not self._infos, "the library did not release a tensor's type and shape"
        if message:
            raise OpError(message)

    def _lend(self, thing):
        self._lent[handle := next(self._numbers)] = thing
        return handle

    def _status(self, message):
        text = ctypes.create_string_buffer(message)
        self._statuses[ctypes.addressof(text)] = text
        return ctypes.addressof(text)

    def _make_callbacks(self):
        """A callback for each slot of OrtApi; a slot that no op needs to run answers with its number."""
        handle, out, sizes, numbers = c_void_p, POINTER(c_void_p), POINTER(c_size_t), POINTER(c_int64)
        calls = {  # index: (function, argument types), and a status as the result
            26: (self._create_domain, c_char_p, out),
            27: (lambda _domain, op: self.ops.append(CustomOp.from_address(op)), handle, handle),
            28: (lambda _options, _domain: None, handle, handle),
            51: (lambda value, data: setitem(data, 0, self._lent[value].pointer), handle, out),
            60: (lambda info, element: setitem(element, 0, self._infos[info].element), handle, POINTER(c_int)),
            61: (lambda info, rank: setitem(rank, 0, len(self._infos[info].shape)), handle, sizes),
            62: (self._dimensions, handle, numbers, c_size_t),
            65: (self._describe, handle, out),
            85: (lambda *arguments: self._attribute(float, *arguments), handle, c_char_p, POINTER(c_float)),
            86: (lambda *arguments: self._attribute(int, *arguments), handle, c_char_p, numbers),
            87: (self._string_attribute, handle, c_char_p, handle, sizes),
            88: (lambda run, count: setitem(count, 0, len(self._lent[run].inputs)), handle, sizes),
            89: (lambda run, count: setitem(count, 0, len(self._lent[run].outputs)), handle, sizes),
            90: (self._input, handle, c_size_t, out),
            91: (self._output, handle, c_size_t, numbers, c_size_t, out),
            193: (lambda run, stream: setitem(stream, 0, self._lent[run].stream), handle, out),
            274: (self._parallel_for, handle, Part, c_size_t, c_size_t, handle),
        }
        absent = (lambda index=index: self._status(b"OrtApi slot %d is not there" % index) for index in range(SLOTS))
        callbacks = [CFUNCTYPE(c_void_p)(function) for function in absent]
        for index, (function, *types) in calls.items():
            callbacks[index] = CFUNCTYPE(c_void_p, *types)(self._guarded(function))
        callbacks[0] = CFUNCTYPE(c_void_p, c_int, c_char_p)(lambda _code, message: self._status(message))
        callbacks[2] = CFUNCTYPE(c_void_p, c_void_p)(lambda status: status)
        for index, held in (93, self._statuses), (99, self._infos):
            callbacks[index] = CFUNCTYPE(None, c_void_p)(held.__delitem__)
        return callbacks

    def _guarded(self, function):
        """No Python exception may cross the library: it becomes a status."""

        def call(*arguments):
            try:
                function(*arguments)
            except Exception as error:
                return self._status(str(error).encode())
            return None

        return call

    def _create_domain(self, name, out):
        self.domain, out[0] = name.decode(), next(self._numbers)

    def _describe(self, value, out):
        out[0] = next(self._numbers)
        self._infos[out[0]] = self._lent[value]

    def _dimensions(self, info, out, count):
        for index, size in enumerate(self._infos[info].shape[:count]):
            out[index] = size

    def _attribute(self, kind, info, name, out):
        value = self._lent[info][name.decode()]
        assert isinstance(value, kind), f"{name.decode()} is no {kind.__name__}"
        out[0] = value

    def _string_attribute(self, info, name, out, size):
        value = self._lent[info][name.decode()].encode() + b"\0"
        if out:
            assert size[0] >= len(value), f"{name.decode()}: {len(value)} bytes, room for {size[0]}"
            ctypes.memmove(out, value, len(value))
        size[0] = len(value)

    def _input(self, run, index, out):
        out[0] = self._lend(self._lent[run].inputs[index])

    def _output(self, run, index, sizes, rank, out):
        out[0] = self._lend(self._lent[run].output(index, tuple(sizes[:rank])))

    @staticmethod
    def _parallel_for(_run, part, count, _batches, argument):
        # ONNX Runtime promises no order: this one differs from a plain loop's.
        for index in reversed(range(count)):
            part(argument, index)


class Binding:
    """Tensors by name."""

    def __init__(self):
        self.inputs, self.outputs = {}, {}

    def bind_input(self, name, _device, _device_id, element, shape, pointer):
        self.inputs[name] = Tensor(element, tuple(shape), pointer)

    def bind_output(self, name, _device, _device_id, element, shape, pointer):
        self.outputs[name] = Tensor(element, tuple(shape), pointer)


class Session:
    """The node of a case; ``stream`` is a GPU's handle, for a provider that has one."""

    io_binding = Binding

    def __init__(self, host, spec, case, dtype, provider="CPUExecutionProvider", stream=None):
        self._host, self._stream = host, stream
        inputs = [argument for argument in spec.inputs if argument.name in case.inputs]
        outputs = harness.output_arguments(spec, case)
        self._inputs, self._outputs = ([argument.name for argument in some] for some in (inputs, outputs))
        elements, self._output_elements = (
            [harness.ELEMENTS[harness.dtype_of(argument, dtype)] for argument in some] for some in (inputs, outputs)
        )
        self._op = host.find(spec.name, provider, elements)
        self._kernel = host.create(self._op, case.attributes)
        weakref.finalize(self, self._op.KernelDestroy, self._kernel)

    def run_with_iobinding(self, binding, _options=None):
        inputs = [binding.inputs[name] for name in self._inputs]
        outputs = [binding.outputs.get(name) for name in self._outputs]
        run = Run(inputs, outputs, self._output_elements, self._stream)
        self._host.compute(self._op, self._kernel, run)
        return run

    def run(self, _names, arrays):
        """Every output, allocated when the kernel asks for it; ``arrays`` are in host memory."""
        binding = Binding()
        for name, array in (arrays := {n: np.asarray(a, order="C") for n, a in arrays.items()}).items():
            binding.bind_input(name, "cpu", 0, ELEMENTS[array.dtype], array.shape, array.ctypes.data)
        return self.run_with_iobinding(binding).allocated
