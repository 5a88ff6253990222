"""What of a session a binding works with."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rocline.runtime.inputs import InputCheck
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
    on_host: frozenset[str] = field(init=False)
    arena: Arena = field(init=False)

    def __post_init__(self) -> None:
        self.on_host = frozenset() if self.host is self.lane else read_on_host(self.ort, self.inputs)
        self.arena = Arena(self.lane.stream)
