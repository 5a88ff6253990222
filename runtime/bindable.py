"""What of a session a binding works with."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rocline.errors import InputError
from rocline.runtime.bound_tensors import AUTOMATIC, buffer_dtype, check_output, infer_shape, own_buffer, stand_in
from rocline.runtime.devices import Buffer
from rocline.runtime.inputs import InputCheck, check_named
from rocline.runtime.manifest import TensorSpec
from rocline.runtime.ort_binding import Arena, read_on_host
from rocline.runtime.startup import Lane

if TYPE_CHECKING:
    import onnxruntime


@dataclass
class Bindable:
    """What bindings need of a session.

    Attributes:
        path: the model, for messages.
        ort: ONNX Runtime's session.
        memory: ONNX Runtime's name of the device's memory.
        inputs: its inputs by name, those with a default in the model too.
        outputs: its outputs by name.
        check: checks inputs.
        lane: the device and the stream.
        host: where inputs are kept that the model reads on the host; the same lane if all is on the host.
        turn: the right to work with the session (see `rocline.runtime.turns`).
        run_options: onnxruntime.RunOptions with which a run only queues; None on the host.
        graph_capture: whether a binding captures unless told otherwise.
        uncapturable: why no run of the session can be captured; None if it can be tried.
        copies_aside: whether runs copy something on the null stream, as ONNX Runtime 1.22 does with outputs that are
            initializers (execution_frame.cc: ExecutionFrame::ExecutionFrame).
        on_host: inputs that the model reads on the host (a shape, for one), wherever it runs.
        arena: what runs left behind.
    """

    path: Path
    ort: "onnxruntime.InferenceSession"
    memory: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    check: InputCheck
    lane: Lane
    host: Lane
    turn: "threading.RLock"
    run_options: Any
    graph_capture: bool
    uncapturable: str | None
    copies_aside: bool
    on_host: frozenset[str] = field(init=False)
    arena: Arena = field(init=False)

    def __post_init__(self) -> None:
        self.on_host = frozenset() if self.host is self.lane else read_on_host(self.ort, self.inputs)
        self.arena = Arena(self.lane.stream)

    def bound_inputs(
        self, given: Mapping[str, Any], bound: Mapping[str, Buffer], made: list[Buffer]
    ) -> dict[str, Buffer]:
        """Returns the inputs' buffers: what is given, as `Session.bind` takes it, in the place of what is bound.

        Where nothing is bound yet, inputs of which the model fixes the shape are there too. New buffers are appended to
        ``made``, also where this raises.

        Raises:
            InputError: an input is unknown or missing, or dtype or shape do not fit.
            DeviceError: a buffer is closed or elsewhere, or the device is out of memory.
        """
        check_named(given)
        wanted, inputs = dict(given), dict(bound)
        if not bound:
            for name in self.check.required:
                shape = self.inputs[name].shape
                if name not in wanted and all(isinstance(size, int) for size in shape):
                    wanted[name] = shape
        for name, value in wanted.items():
            spec = self.inputs.get(name)
            if spec is None:
                raise InputError(f"input '{name}': unknown, the model takes {', '.join(self.inputs)}")
            lane = self.host if name in self.on_host else self.lane
            if isinstance(value, np.ndarray):
                buffer_dtype(spec)
                inputs[name] = lane.device.upload(value, stream=lane.stream)
            else:
                inputs[name] = own_buffer(f"input '{name}'", spec, value, lane)
            made.append(inputs[name])
        self.check({name: stand_in(buffer.shape, buffer.dtype) for name, buffer in inputs.items()})
        return inputs

    def bound_outputs(
        self, wanted: Mapping[str, Any], inputs: Mapping[str, Buffer], bound: Mapping[str, Buffer], made: list[Buffer]
    ) -> dict[str, Buffer]:
        """Returns the outputs' buffers for these inputs, none for those that ONNX Runtime allocates.

        Args:
            wanted: what is wanted of each (see `rocline.runtime.bound_tensors.wanted_outputs`).
            inputs: the inputs.
            bound: the buffers of before; those that still fit are kept.
            made: new buffers are appended to it, also where this raises.

        Raises:
            InputError: dtype or shape of a buffer do not fit, or it is read-only.
            DeviceError: a buffer is closed or elsewhere, or the device is out of memory.
        """
        outputs = {}
        shapes = {name: buffer.shape for name, buffer in inputs.items()}
        for name, value in wanted.items():
            spec, where = self.outputs[name], f"output '{name}'"
            buffer_dtype(spec)
            # What ONNX Runtime would give for an output that is an input itself is that input's memory.
            passed = name in inputs
            automatic = value is AUTOMATIC or (value is None and passed)
            shape = shapes[name] if passed else None if value is None else infer_shape(spec, self.inputs, shapes)
            given = shape if automatic else value
            if given is None:
                continue
            buffer = bound.get(name)
            if buffer is None or (automatic and buffer.shape != shape):
                buffer = own_buffer(where, spec, given, self.lane)
                made.append(buffer)
            check_output(where, spec, shape, buffer)
            outputs[name] = buffer
        return outputs
