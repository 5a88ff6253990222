"""A decoder-only model with a KV cache of fixed size: traced with markers, lowered to rocline's operators.

Whatever the markers or the lowering cannot do ends in `Refused` with its reason: the model is then exported as Optimum
does it, with a cache that grows.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from rocline.custom_ops.rewriting import MARKERS, Outcome, Refusal
from rocline.export import fusion_report, graph_files, markers, passes
from rocline.export.fitting import Fused
from rocline.export.markers import MarkedGraph, Refused
from rocline.export.targets import Target


def export(
    model: Any, folder: Path, target: Target, dtype: str, *, opset: int, sampling_head: bool = False
) -> tuple[Path, Fused]:
    """Writes ``folder / "model.onnx"``, fused, in fp32; returns its path and what was done.

    Args:
        model: a transformers model with a language-modelling head, in fp32, on the CPU, in evaluation mode.
        folder: where the file goes; after a refusal nothing of it is left there.
        target: the runtime the file is for.
        dtype: what the file is converted to afterwards.
        opset: of the default domain.
        sampling_head: let the graph choose the next token, too.

    Raises:
        Refused: the model or the target does not allow it.
    """
    if not target.custom_ops:
        raise Refused(f"{target.provider} runs no operators of rocline's own")
    marked = markers.trace(model, folder, opset=opset)
    path = marked.path
    before = fusion_report.count_nodes(path)
    graph = ir.load(path)
    ir.external_data.load_to_model(graph)
    outcomes = [_marked(marked), *passes.run(graph, target, dtype, sampling_head=sampling_head)]
    try:
        _check_lowered(graph, outcomes)
    except Refused:
        graph_files.remove(path)
        raise
    graph_files.save(graph, path)
    return path, Fused(tuple(outcomes), before)


def refusal(reason: Refused) -> Outcome:
    """What the table of rules says where there is no static cache."""
    return Outcome("static cache", "CachedAttention", 0, (Refusal("model", str(reason)),))


def _marked(marked: MarkedGraph) -> Outcome:
    """What the table of rules says of the markers, which were traced, and of modules that none stands for."""
    left = tuple(Refusal("model", reason) for reason in marked.unmarked)
    return Outcome("markers", "traced as one node each", sum(marked.marked.values()), left)


def _check_lowered(graph: ir.Model, outcomes: Sequence[Outcome]) -> None:
    """Raises Refused if a marker is left, with the reasons of the rules that left it."""
    left = [node for node in graph.graph.all_nodes() if node.domain == MARKERS]
    if not left:
        return
    names = {node.name for node in left}
    reasons = dict.fromkeys(entry.reason for outcome in outcomes for entry in outcome.refused if entry.node in names)
    counts = ", ".join(f"{op} ({count})" for op, count in sorted(Counter(node.op_type for node in left).items()))
    why = f": {'; '.join(reasons)}" if reasons else ""
    raise Refused(f"no operator stands for the markers {counts}{why}")
