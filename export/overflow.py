"""Which values of a graph leave the range of fp16 on real inputs, so that what makes and reads them must stay in fp32.

Every float value of the fp32 graph is looked at while it runs on the cases that parity is measured on. A large number
that only hides something, a mask, is no overflow: it is clamped (`rocline.export.dtypes`).
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rocline.export import precision
from rocline.export.reference import Case

# A value may pass what was seen by this factor on other inputs.
HEADROOM = 2
# Values asked for in one run: all of them at once would keep every activation of a long prompt in memory.
_VALUES_A_RUN = 400
# Through these a mask stays a mask; nothing else is done to one before the softmax.
_PASSES_MASKS = frozenset(
    {"Add", "Cast", "Concat", "Expand", "Gather", "Identity", "Max", "Min", "Reshape", "ScatterND", "Slice", "Squeeze"}
    | {"Sub", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where"}
)
_MAKES_MASKS = (_PASSES_MASKS - {"Gather"}) | {"Constant", "ConstantOfShape", "Mul"}


def scan(path: Path, cases: Iterable[Case]) -> dict[str, float]:
    """Runs an fp32 file on the CPU; returns the largest finite magnitude of each float value, by its name.

    Args:
        path: an fp32 ONNX file.
        cases: its runs. Of a merged decoder's branches each is looked at in the cases that take it.
    """
    taken: dict[bool | None, list[Case]] = defaultdict(list)
    for case in cases:
        switch = case.feeds.get("use_cache_branch")
        taken[None if switch is None else bool(switch[0])].append(case)
    peaks: dict[str, float] = defaultdict(float)
    for same in taken.values():
        _run(path, same, peaks)
    return dict(peaks)


def _run(path: Path, cases: Sequence[Case], peaks: dict[str, float]) -> None:
    """Runs cases that take the same branch, and raises the peaks to what they reach."""
    import onnx

    from rocline.export import diverge, parity

    model = diverge.branch(onnx.load_model(path, load_external_data=False), cases[0])
    onnx.load_external_data_for_model(model, str(path.parent))
    outputs = list(model.graph.output)
    known = {output.name for output in outputs}
    made = [name for node in model.graph.node for name in node.output if name and node.op_type != "Constant"]
    with tempfile.TemporaryDirectory() as folder:
        opened = Path(folder) / path.name
        onnx.save_model(model, opened, save_as_external_data=True, location="weights")
        for first in range(0, len(made), _VALUES_A_RUN):
            chunk = made[first : first + _VALUES_A_RUN]
            del model.graph.output[:]
            model.graph.output.extend(outputs)
            for name in chunk:
                if name not in known:
                    model.graph.output.add().name = name
            opened.write_bytes(model.SerializeToString())
            with ExitStack() as stack:
                session = parity.open_session(opened, stack)
                for case in cases:
                    for name, array in zip(chunk, session.run(chunk, case.feeds), strict=True):
                        if array.dtype == np.float32:
                            peaks[name] = max(peaks[name], _peak(array))


def _peak(array: npt.NDArray[np.float32]) -> float:
    finite = np.abs(array, where=np.isfinite(array), out=np.zeros_like(array))
    return float(finite.max(initial=0))


def values(graph: ir.Graph, peaks: Mapping[str, float], largest: float) -> set[ir.Value]:
    """Returns the values of a graph and its subgraphs that may pass ``largest``, masks left out.

    Args:
        graph: of the file that was scanned, with element types.
        peaks: from `scan`.
        largest: the largest finite number of the half type.
    """
    derived = precision.integer_derived(list(graph.all_nodes()))
    # Values that no input of floats has a part in, and what came of adding one that hides to something else.
    free: set[ir.Value] = set()
    masks: set[ir.Value] = set()
    found: set[ir.Value] = set()
    for node in graph.all_nodes():
        floats = [value for value in node.inputs if precision.is_float(value)]
        made_free = node in derived or (
            node.op_type in _MAKES_MASKS
            and all(value in free or precision.constant(value) is not None for value in floats)
        )
        passes = node.op_type in _PASSES_MASKS and any(value in masks or _is_large(value, largest) for value in floats)
        for value in filter(precision.is_float, node.outputs):
            if made_free:
                free.add(value)
            if peaks.get(value.name or "", 0.0) * HEADROOM > largest:
                (masks if made_free or passes else found).add(value)
    return found


def _is_large(value: ir.Value | None, largest: float) -> bool:
    tensor = precision.constant(value)
    if tensor is None or not precision.is_float(value):
        return False
    array = tensor.numpy()
    return array.size > 0 and float(np.abs(array[np.isfinite(array)]).max(initial=0)) > largest
