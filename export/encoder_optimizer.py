"""Fuses the layers of BERT and its relatives with ONNX Runtime's own transformer optimizer.

Attention (with the projections before it packed), SkipLayerNormalization, BiasGelu and EmbedLayerNormalization take the
place of a dozen nodes each. They are contrib operators, so only targets that run them get them. In other models the
optimizer finds no attention: the passes of `rocline.export.passes` fuse those, and what a target has no such operators
for.
"""

import contextlib
import importlib
import io
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rocline.custom_ops.rewriting import Outcome, Refusal
from rocline.export import element_types, graph_files
from rocline.export.targets import Target

if TYPE_CHECKING:
    import onnx

# The optimizer's own model type for each architecture that was tried.
_FUSIONS = {
    **dict.fromkeys(("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"), "bert"),
}
RULE = "ONNX Runtime's transformer optimizer"
# Smaller initializers may be shapes or indices, which shape inference reads.
_SHAPE_BYTES = 1024


def optimize(
    path: Path, *, model_type: str, heads: int, hidden_size: int, target: Target, dtype: str = "fp32"
) -> list[Outcome]:
    """Fuses an fp32 file in place if the target runs everything that comes out; returns what was fused, or why not.

    Args:
        path: the file; it is rewritten only if something was fused.
        model_type: of the transformers config.
        heads: attention heads; 0 lets the optimizer find out.
        hidden_size: 0 lets the optimizer find out.
        target: the runtime that will load the file.
        dtype: what the file will be converted to afterwards: only operators that the target runs in it are emitted.

    Returns:
        One outcome an operator, or one with the reason why nothing was fused; none for a model that it is not known to
        help, or a target that gets standard operators only.

    A padding mask may hide any position: the fused attention takes the mask itself, not a count of tokens, which would
    be right for padding at the end only.
    """
    if not target.contrib_ops or model_type not in _FUSIONS:
        return []
    fused = _fuse(path, _FUSIONS[model_type], heads, hidden_size)
    operators = Counter(node.op_type for node in fused.graph.node if node.domain == "com.microsoft")
    lacking = [op for op in sorted(operators) if not _runs(op, dtype, target)]
    if lacking or not operators:
        reason = f"the target has no {', '.join(lacking)} in {dtype}" if lacking else "it found nothing to fuse"
        return [Outcome(RULE, "Attention", 0, (Refusal(path.name, reason),))]
    _set_domains(fused)
    _save(fused, path)
    return [Outcome(RULE, op, count) for op, count in sorted(operators.items())]


def _runs(op_type: str, dtype: str, target: Target) -> bool:
    known = element_types.takes(op_type, "com.microsoft", dtype, target.max_opset)
    return known and target.runs(op_type, dtype, "com.microsoft")


def _fuse(path: Path, fusions: str, heads: int, hidden_size: int) -> "onnx.ModelProto":
    with _quiet():
        from onnxruntime.transformers import optimizer
        from onnxruntime.transformers.fusion_options import FusionOptions

        options = FusionOptions(fusions)
        options.use_raw_attention_mask(True)
        # Level 0: no pass through an ONNX Runtime session first, which costs seconds and two copies of the weights.
        with _shapes_without_weights():
            optimized = optimizer.optimize_model(
                str(path), fusions, num_heads=heads, hidden_size=hidden_size, optimization_options=options, opt_level=0
            )
    fused: onnx.ModelProto = optimized.model
    return fused


def _set_domains(model: "onnx.ModelProto") -> None:
    """Imports the domains that the nodes are of, and no others."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    used = sorted({node.domain for node in model.graph.node} | {""})
    del model.opset_import[:]
    for domain in used:
        model.opset_import.add(domain=domain, version=versions.get(domain, 1))


def _save(model: "onnx.ModelProto", path: Path) -> None:
    import onnx

    data = path.with_name(path.name + ".data")
    graph_files.remove(path)
    if model.ByteSize() > graph_files.MAX_INLINE_BYTES:
        onnx.save_model(model, path, save_as_external_data=True, location=data.name)
    else:
        path.write_bytes(model.SerializeToString())


@contextlib.contextmanager
def _shapes_without_weights() -> Iterator[None]:
    """Lets the optimizer infer shapes on the bare graph: for each pass it copies the model, weights and all."""
    module: Any = importlib.import_module("onnx_model")
    original = module.SymbolicShapeInferenceHelper
    module.SymbolicShapeInferenceHelper = lambda model: original(_without_weights(model))
    try:
        yield
    finally:
        module.SymbolicShapeInferenceHelper = original


def _without_weights(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Returns a copy whose large initializers are inputs: they have a type and a shape, but no data."""
    import onnx

    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    bare.graph.name = graph.name
    for name in ("node", "input", "output", "value_info"):
        getattr(bare.graph, name).extend(getattr(graph, name))
    for tensor in graph.initializer:
        if tensor.ByteSize() <= _SHAPE_BYTES:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return bare


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the optimizer, whose modules print and log under their bare file names, for the length of the block."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
