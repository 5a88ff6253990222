"""The manifest's account of what was fused and where it should run, for people."""

from collections.abc import Mapping
from typing import Any

_INDENT = "  "


def lines(fusion: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a table for each ONNX file.

    Args:
        fusion: the manifest's field of that name, as JSON has it: `rocline.runtime.manifest.Fusion` by file name.
    """
    return [line for name, entry in fusion.items() for line in _file(name, entry)]


def _file(name: str, entry: Mapping[str, Any]) -> list[str]:
    rows = []
    for row in entry["rows"]:
        rows += [(row["rule"], str(row["count"]), row["made"])] if row["count"] else []
        rows += [(row["rule"], str(count), f"not done: {reason}") for reason, count in row["refused"].items()]
    if rows:
        rows.insert(0, ("rule", "times", "result"))
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    found = [f"{name}: {entry['nodes_before']} nodes traced, {entry['nodes_after']} after fusion"]
    found += [f"{_INDENT}{rule:<{widths[0]}}  {count:>{widths[1]}}  {what}" for rule, count, what in rows]
    for provider, operators in entry["placement"].items():
        found.append(f"{_INDENT}expected on {provider}: {_counted(operators)}")
    if entry["shapes"]:
        found.append(f"{_INDENT}expected on the CPU, since they only compute shapes: {_counted(entry['shapes'])}")
    return found


def _counted(operators: Mapping[str, int]) -> str:
    listed = ", ".join(f"{operator} {count}" for operator, count in operators.items())
    total = sum(operators.values())
    return f"{total} node{'' if total == 1 else 's'} ({listed})"
