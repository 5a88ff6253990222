"""ONNX files as files: their interface, IR version and opset, external data, and what is wrong with a damaged one."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rocline.errors import ExportError
from rocline.export.targets import DTYPES, Target
from rocline.runtime import onnx_file
from rocline.runtime.manifest import OnnxModel

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

# protobuf cannot hold more than 2 GiB in one message; the graph needs some of it.
MAX_INLINE_BYTES = (2 << 30) - (64 << 20)
# Smaller tensors stay in the .onnx file: shape inference needs to see them.
_INLINE_TENSOR_BYTES = 1024
_WEIGHT_DTYPES = {element: dtype for dtype, element in DTYPES.items()}


def load(path: Path) -> "onnx.ModelProto":
    """Parses an ONNX file; its external data are not read.

    Raises:
        ModelError: it is no ONNX file or is cut short.
    """
    import onnx

    onnx_file.read(path)
    return onnx.load_model(path, load_external_data=False)


def save(model: "ir.Model", path: Path) -> None:
    """Writes a model over the file it came from; weights too large for one file go to ``NAME.onnx.data`` beside it."""
    import onnx_ir as ir

    ir.external_data.load_to_model(model)
    remove(path)
    size = sum(
        value.const_value.nbytes
        for graph in (model.graph, *model.graph.subgraphs())
        for value in graph.initializers.values()
        if value.const_value is not None
    )
    ir.save(model, path, external_data=f"{path.name}.data" if size > MAX_INLINE_BYTES else None)


def remove(path: Path) -> None:
    """Deletes an ONNX file and the files that its weights are in."""
    for file in {path, *(path.parent / tensor.location for tensor in onnx_file.read(path).external)}:
        file.unlink()


def interface(path: Path) -> OnnxModel:
    """Returns what a runtime must know to load and feed the file; its weights are not read.

    Raises:
        ModelError: it is no ONNX file or is cut short.
    """
    outline = onnx_file.read(path)
    return OnnxModel(
        ir_version=outline.ir_version, opsets=outline.opsets, inputs=outline.inputs, outputs=outline.outputs
    )


def check_opset(opset: int, target: Target) -> None:
    """Refuses an opset that the target's runtime does not load.

    Raises:
        ExportError: with the highest one it does.
    """
    if not 1 <= opset <= target.max_opset:
        raise ExportError(f"opset {opset}: target {target.name!r} loads opsets up to {target.max_opset}")


def finish(path: Path, target: Target, *, external_data: bool) -> None:
    """Holds an exported file to what the target loads and splits its weights off where asked or where it must be.

    The file is written again only if something changes. External data end up in ``NAME.onnx.data`` beside it.

    Raises:
        ExportError: its opset is above the target's.
    """
    import onnx

    outline = onnx_file.read(path)
    check_opset(outline.opsets["ai.onnx"], target)
    data = path.with_name(path.name + ".data")
    old = {path.parent / tensor.location for tensor in outline.external}
    split = external_data or bool(old) or path.stat().st_size > MAX_INLINE_BYTES
    moves = split and old != {data}
    if outline.ir_version <= target.max_ir_version and not moves:
        return
    model = onnx.load_model(path, load_external_data=moves)
    model.ir_version = min(model.ir_version, target.max_ir_version)
    if not moves:
        path.write_bytes(model.SerializeToString())
        return
    for file in (path, *old):
        file.unlink()
    onnx.save_model(model, path, save_as_external_data=True, location=data.name, size_threshold=_INLINE_TENSOR_BYTES)


def adopt(path: Path, destination: Path, target: Target) -> None:
    """Copies an ONNX file that was made elsewhere, with its external data, and holds it to the target's versions.

    Raises:
        ModelError: it is damaged, or its external data are missing, cut short, or outside its folder.
        ExportError: its opset is above the target's, it breaks ONNX's rules, or its weights hold NaN.
    """
    import onnx

    outline = onnx_file.read(path)
    check_opset(outline.opsets.get("ai.onnx", 1), target)
    onnx_file.check_external(path, outline)
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        # Operators of other domains have no schema here; the runtime knows them.
        if "No Op registered" not in str(error):
            raise ExportError(f"{path}: breaks ONNX's rules: {' '.join(str(error).split())[:300]}") from None
    model = load(path)
    _check_finite(path, model)
    for location in {tensor.location for tensor in outline.external}:
        (destination.parent / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / location, destination.parent / location)
    if model.ir_version > target.max_ir_version:
        model.ir_version = target.max_ir_version
        destination.write_bytes(model.SerializeToString())
    else:
        shutil.copyfile(path, destination)


def weight_dtype(path: Path) -> str:
    """Returns ``fp32``, ``fp16`` or ``bf16``: the dtype that most bytes of the float weights have; fp32 without any."""
    sizes: Mapping[str, int] = onnx_file.read(path).weight_bytes
    return _WEIGHT_DTYPES[max(_WEIGHT_DTYPES, key=lambda dtype: sizes.get(dtype, 0))]


def _check_finite(path: Path, model: "onnx.ModelProto") -> None:
    import numpy as np
    import onnx

    for tensor in _tensors(model.graph):
        if onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).kind != "f":
            continue
        if np.isnan(onnx.numpy_helper.to_array(tensor, base_dir=str(path.parent))).any():
            raise ExportError(f"{path}: weights hold NaN, first in {tensor.name!r}: the model is broken")


def _tensors(graph: "onnx.GraphProto") -> Iterator["onnx.TensorProto"]:
    """Yields the weights and constants of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
