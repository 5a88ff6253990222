"""Makes a traced fp32 file fit its target: fused, converted to its dtype, held to what the target loads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from rocline.custom_ops.rewriting import Outcome
from rocline.export import dtypes, encoder_optimizer, fusion_report, graph_files, overflow, passes
from rocline.export.reference import Case
from rocline.export.targets import Target


@dataclass(frozen=True)
class Fused:
    """What became of a file so far.

    Attributes:
        outcomes: of the passes, in order.
        nodes_before: nodes of the traced graph.
        notes: for the manifest.
    """

    outcomes: tuple[Outcome, ...]
    nodes_before: int
    notes: tuple[str, ...] = ()


def fuse(file: Path, config: Any, target: Target, dtype: str, *, pooling: tuple[str, bool] | None = None) -> Fused:
    """Fuses an fp32 file in place, with ONNX Runtime's optimizer where it is known to help and the target runs it.

    Args:
        file: as the tracer left it, with or without markers.
        config: of the transformers model.
        target: the runtime the file is for.
        dtype: what the file is converted to afterwards.
        pooling: of a sentence embedder, from `rocline.export.sentences.pooling`.
    """
    before = fusion_report.count_nodes(file)
    optimized = encoder_optimizer.optimize(
        file,
        model_type=config.model_type,
        heads=getattr(config, "num_attention_heads", 0),
        hidden_size=getattr(config, "hidden_size", 0),
        target=target,
        dtype=dtype,
    )
    model = ir.load(file)
    ir.external_data.load_to_model(model)
    outcomes = passes.run(model, target, dtype, pooling=pooling)
    graph_files.save(model, file)
    return Fused((*optimized, *outcomes), before)


def finish(
    file: Path, cases: Sequence[Case], target: Target, dtype: str, *, external_data: bool = False
) -> tuple[str, ...]:
    """Converts a fused file to its dtype and writes what the target loads; returns notes for the manifest.

    Args:
        file: the fused file, in fp32.
        cases: its runs, in fp32: what overflows on them stays in fp32.
        target: the runtime the file is for.
        dtype: ``fp32``, ``fp16`` or ``bf16``.
        external_data: keep the weights in a file beside the graph.
    """
    notes: list[str] = []
    if dtype != "fp32":
        peaks = overflow.scan(file, cases) if dtype == "fp16" else {}
        notes = dtypes.convert(file, dtype, target, peaks)
    graph_files.finish(file, target, external_data=external_data)
    return tuple(f"{file.name}: {note}" for note in notes)
