"""What was fused, what was not and why, and where the result is expected to run: for the manifest and for people."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rocline.custom_ops.rewriting import Outcome
from rocline.export import placement
from rocline.export.targets import Target
from rocline.runtime import onnx_file
from rocline.runtime.manifest import Fusion, FusionRow


def describe(path: Path, outcomes: Iterable[Outcome], *, nodes_before: int, target: Target) -> Fusion:
    """Returns the manifest's entry for an ONNX file that is finished.

    Args:
        path: the file.
        outcomes: of the passes that made it, in order.
        nodes_before: as `count_nodes` gave before them.
        target: the runtime the file is for.
    """
    placed = placement.predict(path, target)
    return Fusion(
        rows=tuple(_row(outcome) for outcome in outcomes),
        nodes_before=nodes_before,
        nodes_after=count_nodes(path),
        placement=placed.nodes,
        shapes=placed.shapes,
    )


def count_nodes(path: Path) -> int:
    """Returns how many nodes a file has, those of subgraphs and constants included."""
    return onnx_file.read(path).operators.total()


def _row(outcome: Outcome) -> FusionRow:
    refused = Counter(refusal.reason for refusal in outcome.refused)
    return FusionRow(outcome.rule, outcome.made, outcome.matched, dict(refused))
