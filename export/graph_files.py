"""ONNX files as files: their interface, IR version and opset, external data, and what is wrong with a damaged one."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from rocline.errors import ExportError
from rocline.runtime.manifest import OnnxModel, TensorSpec

if TYPE_CHECKING:
    import onnx

    from rocline.export.targets import Target

# protobuf cannot hold more than 2 GiB in one message; the rest of the file needs some of it.
MAX_INLINE_BYTES = (2 << 30) - (64 << 20)
# Smaller tensors stay in the .onnx file: shape inference needs to see them.
_INLINE_TENSOR_BYTES = 1024


def load(path: Path) -> "onnx.ModelProto":
    """Parses an ONNX file without reading its external data.

    Raises:
        ExportError: it is no ONNX file or is cut short.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model(path, load_external_data=False)
    except DecodeError:
        raise ExportError(f"{path}: is no ONNX file, or it is cut short or damaged") from None
    if not model.graph.node and not model.graph.output:
        raise ExportError(f"{path}: is no ONNX file, or it is cut short: it holds no graph")
    return model


def interface(path: Path) -> OnnxModel:
    """Returns what a runtime must know to load and feed the file.

    Raises:
        ExportError: it is no ONNX file.
    """
    model = load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    return OnnxModel(
        ir_version=model.ir_version,
        opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        inputs=tuple(_spec(value) for value in model.graph.input if value.name not in weights),
        outputs=tuple(_spec(value) for value in model.graph.output),
    )


def check_opset(opset: int, target: "Target") -> None:
    """Refuses an opset that the target's runtime does not load.

    Raises:
        ExportError: with the highest one it does.
    """
    if not 1 <= opset <= target.max_opset:
        raise ExportError(f"opset {opset}: target {target.name!r} loads opsets up to {target.max_opset}")


def finish(path: Path, target: "Target", *, external_data: bool) -> None:
    """Holds an exported file to what the target loads and splits its weights off where asked or where it must be.

    The file is written again only if something changes. External data end up in ``NAME.onnx.data`` beside it.

    Raises:
        ExportError: its opset is above the target's.
    """
    import onnx

    model = load(path)
    old = {path.parent / location for location in external_locations(model)}
    lower_ir = model.ir_version > target.max_ir_version
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            check_opset(entry.version, target)
    data = path.with_name(path.name + ".data")
    split = external_data or bool(old) or path.stat().st_size > MAX_INLINE_BYTES
    if not lower_ir and (not split or old == {data}):
        return
    model.ir_version = min(model.ir_version, target.max_ir_version)
    if split and old != {data}:
        if old:
            onnx.load_external_data_for_model(model, str(path.parent))
        for file in (path, *old):
            file.unlink()
        onnx.save_model(
            model,
            path,
            save_as_external_data=True,
            location=data.name,
            size_threshold=_INLINE_TENSOR_BYTES,
        )
    else:
        path.write_bytes(model.SerializeToString())


def adopt(path: Path, destination: Path, target: "Target") -> None:
    """Copies an ONNX file that was made elsewhere, with its external data, and holds it to the target's versions.

    Raises:
        ExportError: it is damaged, its opset is above the target's, its weights hold NaN, or its external data are
            missing, cut short, or outside its folder.
    """
    import shutil

    import onnx

    model = load(path)
    for location in external_locations(model):
        relative = PurePosixPath(location)
        source = path.parent / relative
        if relative.is_absolute() or ".." in relative.parts or source.is_symlink():
            raise ExportError(f"{path}: its external data {location!r} point outside its folder")
        if not source.is_file():
            raise ExportError(f"{path}: its external data {location!r} are missing")
        (destination.parent / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, destination.parent / relative)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            check_opset(entry.version, target)
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        if "No Op registered" not in str(error):
            raise ExportError(f"{path}: is damaged: {' '.join(str(error).split())[:300]}") from None
    _check_weights(path, model)
    if model.ir_version > target.max_ir_version:
        model.ir_version = target.max_ir_version
        destination.write_bytes(model.SerializeToString())
    else:
        shutil.copyfile(path, destination)


def weight_dtype(model: "onnx.ModelProto") -> str:
    """Returns ``fp32``, ``fp16`` or ``bf16``: the type that most of the float weights have."""
    import onnx

    names: dict[int, str] = {
        onnx.TensorProto.FLOAT: "fp32",
        onnx.TensorProto.FLOAT16: "fp16",
        onnx.TensorProto.BFLOAT16: "bf16",
    }
    sizes = dict.fromkeys(names.values(), 0)
    for tensor in _tensors(model):
        if tensor.data_type in names:
            count = 1
            for dim in tensor.dims:
                count *= dim
            sizes[names[tensor.data_type]] += count
    return max(sizes, key=lambda name: sizes[name])


def external_locations(model: "onnx.ModelProto") -> set[str]:
    """Returns the relative paths of the files that hold the model's external tensors."""
    import onnx

    found: set[str] = set()
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            found.update(entry.value for entry in tensor.external_data if entry.key == "location")
    return found


def _tensors(model: "onnx.ModelProto") -> Iterator["onnx.TensorProto"]:
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)


def _check_weights(path: Path, model: "onnx.ModelProto") -> None:
    import numpy as np
    import onnx

    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    for tensor in _tensors(model):
        if tensor.data_type not in floats:
            continue
        try:
            values = onnx.numpy_helper.to_array(tensor, base_dir=str(path.parent))
        except (ValueError, OSError, onnx.checker.ValidationError):
            raise ExportError(f"{path}: tensor {tensor.name!r} is cut short or damaged") from None
        if np.isnan(values).any():
            raise ExportError(f"{path}: weights hold NaN, first in {tensor.name!r}")


def _spec(value: "onnx.ValueInfoProto") -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    if tensor.elem_type == onnx.TensorProto.BFLOAT16:
        dtype = "bfloat16"
    elif tensor.elem_type == onnx.TensorProto.STRING:
        dtype = "string"
    else:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}.{index}"
        for index, dim in enumerate(tensor.shape.dim)
    )
    return TensorSpec(value.name, dtype, shape)
