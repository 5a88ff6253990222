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
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Layer:
    """A torch module that ran once.

    Attributes:
        name: its qualified name.
        output: what PyTorch's gave, or the first of its tensors.
        inputs: identities of the tensors that went in.
        far: largest absolute difference to the nearest tensor of its scope; None where the graph has none of its shape.
    """

    name: str
    output: npt.NDArray[Any]
    inputs: frozenset[int]
    far: float | None = None

    def differs(self, bound: float) -> bool:
        """Tells whether the difference is above the bound, which is relative where the values are above 1."""
        return self.far is not None and not self.far <= bound * max(1.0, float(np.abs(self.output).max(initial=0.0)))


def describe(path: Path, case: Case, bound: float) -> str:
    """Returns one phrase for an error: which layer differs first, and how far.

    Args:
        path: the ONNX file.
        case: the run in which its outputs differ.
        bound: the accepted difference.
    """
    try:
        layers = compare(path, case)
    except ExportError as error:
        return f"its layers could not be compared: {error}"
    layer = first_diverging(layers, bound)
    if layer is None:
        return f"none of its {len(layers)} comparable layers differs: look at what follows the last"
    return f"first diverging layer: {layer.name} (max abs {layer.far:.3g})"


def first_diverging(layers: list[Layer], bound: float) -> Layer | None:
    """Returns the layer where the difference begins; None if no layer differs.

    A difference does not heal: a layer that seems to differ while one behind it agrees was compared with the wrong
    tensor, because fusion took its own away. A layer is not behind another where its input was there before: query, key
    and value work side by side, and every decoder layer reads what the encoder made.
    """
    differing = [(place, layer) for place, layer in enumerate(layers) if layer.differs(bound)]
    for place, layer in differing:
        there = [
            other.inputs
            for index, other in enumerate(layers)
            if index <= place or layer.name.startswith(f"{other.name}.")
        ]
        before = frozenset().union(*there)
        if all(other.differs(bound) or other.inputs & before for other in layers[place + 1 :]):
            return layer
    return differing[0][1] if differing else None


def compare(path: Path, case: Case) -> list[Layer]:
    """Runs both sides; returns the layers that can be compared, in the order in which PyTorch finishes them.

    Raises:
        ExportError: the graph cannot be run with its layers as outputs.
    """
    import onnx

    layers = _run_torch(case)
    model = branch(onnx.load_model(path, load_external_data=False), case)
    tensors = _scoped_tensors(model, {layer.name for layer in layers})
    outputs = {output.name for output in model.graph.output}
    for name in sorted({tensor for candidates in tensors.values() for tensor in candidates} - outputs):
        model.graph.output.add().name = name
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        values = _run_onnx(model, path, Path(folder), case, stack)
    compared = []
    for layer in layers:
        distances = [
            _farthest(values[tensor], layer.output, case.mask)
            for tensor in tensors[layer.name]
            if values[tensor].shape == layer.output.shape
        ]
        if distances:
            compared.append(replace(layer, far=min(distances)))
    return compared


def branch(model: "onnx.ModelProto", case: Case) -> "onnx.ModelProto":
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


def _farthest(got: npt.NDArray[Any], wanted: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None) -> float:
    from rocline.export import parity

    distance = parity.absolute_difference(got, wanted)
    if mask is not None and wanted.shape[:2] == mask.shape:
        distance = distance[mask]
    return float(distance.max(initial=0.0))


def _run_torch(case: Case) -> list[Layer]:
    """Returns every submodule that ran once, in the order in which they finished."""
    found: dict[str, list[Layer]] = {}
    alive: list[Any] = []

    def keep(name: str) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            while isinstance(output, tuple) and output:
                output = output[0]
            if hasattr(output, "is_floating_point") and output.is_floating_point():
                tensors = [value for value in (*args, *named.values()) if hasattr(value, "is_floating_point")]
                alive.extend(tensors)
                inputs = frozenset(id(tensor) for tensor in tensors if tensor.is_floating_point())
                found.setdefault(name, []).append(Layer(name, output.numpy().copy(), inputs))

        return hook

    handles = [
        module.register_forward_hook(keep(name), with_kwargs=True) for name, module in case.root.named_modules() if name
    ]
    try:
        case.replay()
    finally:
        for handle in handles:
            handle.remove()
    return [runs[0] for runs in found.values() if len(runs) == 1]


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


def _run_onnx(
    model: "onnx.ModelProto", path: Path, folder: Path, case: Case, stack: ExitStack
) -> dict[str, npt.NDArray[Any]]:
    import onnx

    from rocline.export import parity

    names = [output.name for output in model.graph.output]
    onnx.load_external_data_for_model(model, str(path.parent))
    onnx.save_model(model, folder / path.name, save_as_external_data=True, location="weights")
    session = parity.open_session(folder / path.name, stack)
    try:
        return dict(zip(names, session.run(names, case.feeds), strict=True))
    except Exception as error:
        raise ExportError(f"ONNX Runtime fails: {' '.join(str(error).split())}") from error
