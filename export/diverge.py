"""Finds the first layer at which an exported model leaves its PyTorch original.

The tracer names nodes and tensors after the module that computes them: ``/model/layers.0/mlp/Mul_output_0`` comes from
the module ``model.layers.0.mlp``. A module's output is among the last tensors of its scope that are left in the graph,
also after fusion, since fused nodes keep the names of the outputs they replace. Both sides run on the same case;
modules are compared in the order in which PyTorch finishes them.
"""

import copy
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rocline.errors import ExportError
from rocline.export.reference import Case

if TYPE_CHECKING:
    import onnx

# A module may end in several tensors (a rotary embedding's cosine and sine) or be followed by casts.
_CANDIDATES = 4


def describe(path: Path, case: Case, bound: float) -> str:
    """Returns one phrase for an error: which layer differs first, and how far.

    Args:
        path: the ONNX file.
        case: the run in which its outputs differ.
        bound: the accepted difference of the outputs; a layer whose values are large may differ in proportion.
    """
    try:
        layers = compare(path, case)
    except ExportError as error:
        return f"its layers could not be compared: {error}"
    for name, far, scale in layers:
        if not far <= bound * max(1.0, scale):
            return f"first diverging layer: {name} (max abs {far:.3g})"
    return f"none of its {len(layers)} comparable layers differs: look at what follows the last"


def compare(path: Path, case: Case) -> list[tuple[str, float, float]]:
    """Runs both sides; returns (module, max abs difference, max abs of PyTorch's values) in the order of execution.

    Modules without a tensor of their shape in the graph (fused away) are left out.

    Raises:
        ExportError: the graph cannot be run with its layers as outputs.
    """
    import onnx

    modules = _module_outputs(case)
    model = _branch(onnx.load_model(path, load_external_data=False), case)
    tensors = _scoped_tensors(model, {name for name, _ in modules})
    outputs = {output.name for output in model.graph.output}
    for name in sorted({tensor for candidates in tensors.values() for tensor in candidates} - outputs):
        model.graph.output.add().name = name
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        values = _run(model, path, Path(folder), case, stack)
    layers = []
    for name, wanted in modules:
        distances = [
            _farthest(values[tensor], wanted, case.mask)
            for tensor in tensors[name]
            if values[tensor].shape == wanted.shape
        ]
        if distances:
            layers.append((name, min(distances), float(np.abs(wanted).max(initial=0.0))))
    return layers


def peak(case: Case) -> tuple[str, float]:
    """Returns the layer with the largest output in PyTorch, and the largest absolute value in it."""
    peaks = ((name, float(np.abs(output).max(initial=0.0))) for name, output in _module_outputs(case))
    return max(peaks, key=lambda entry: entry[1], default=("", 0.0))


def _farthest(got: npt.NDArray[Any], wanted: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None) -> float:
    from rocline.export import parity

    distance = parity.absolute_difference(got, wanted)
    if mask is not None and wanted.shape[:2] == mask.shape:
        distance = distance[mask]
    return float(distance.max(initial=0.0))


def _module_outputs(case: Case) -> list[tuple[str, npt.NDArray[Any]]]:
    """Returns (module, output) of every submodule that ran once, in the order in which they finished."""
    outputs: dict[str, list[npt.NDArray[Any]]] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            while isinstance(output, tuple) and output:
                output = output[0]
            if hasattr(output, "is_floating_point") and output.is_floating_point():
                outputs.setdefault(name, []).append(output.numpy().copy())

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in case.root.named_modules() if name]
    try:
        case.replay()
    finally:
        for handle in handles:
            handle.remove()
    return [(name, arrays[0]) for name, arrays in outputs.items() if len(arrays) == 1]


def _scope(module: str) -> str:
    """Returns the tracer's prefix for a module: ``encoder.layer.0.output`` becomes ``/encoder/layer.0/output/``."""
    return "/" + re.sub(r"/(\d+)(?=/)", r".\1", module.replace(".", "/") + "/")


def _scoped_tensors(model: "onnx.ModelProto", modules: set[str]) -> dict[str, list[str]]:
    """Returns for each module the last tensors that are computed in its scope, by their own or their node's name."""
    computed = [
        (name, node.name)
        for node in reversed(model.graph.node)
        for name in node.output
        if name and node.op_type != "Constant"
    ]
    return {
        module: [name for name, node in computed if name.startswith(scope) or node.startswith(scope)][:_CANDIDATES]
        for module, scope in ((module, _scope(module)) for module in modules)
    }


def _branch(model: "onnx.ModelProto", case: Case) -> "onnx.ModelProto":
    """Returns a merged decoder's branch that the case takes as a graph of its own; any other model as it is."""
    taken = case.feeds.get("use_cache_branch")
    switches = [node for node in model.graph.node if node.op_type == "If"]
    if taken is None or len(switches) != 1:
        return model
    wanted = "then_branch" if bool(taken[0]) else "else_branch"
    branch = next(attribute.g for attribute in switches[0].attribute if attribute.name == wanted)
    single = copy.copy(model)
    del single.graph.node[:], single.graph.output[:]
    single.graph.node.extend(branch.node)
    single.graph.initializer.extend(branch.initializer)
    return single


def _run(
    model: "onnx.ModelProto", path: Path, folder: Path, case: Case, stack: ExitStack
) -> dict[str, npt.NDArray[Any]]:
    import onnx

    from rocline.export import parity

    names = [output.name for output in model.graph.output]
    onnx.load_external_data_for_model(model, str(path.parent))
    onnx.save_model(model, folder / path.name, save_as_external_data=True, location="weights")
    session, _ = parity.open_session(folder / path.name, stack)
    try:
        return dict(zip(names, session.run(names, case.feeds), strict=True))
    except Exception as error:
        raise ExportError(f"ONNX Runtime fails: {' '.join(str(error).split())}") from error
