"""What is in a model: the facts behind ``rocline inspect``, read without onnxruntime or onnx."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rocline.runtime import fusion_table, onnx_file
from rocline.runtime.manifest import TensorSpec
from rocline.runtime.model import locate, onnx_files

_LAYER = re.compile(r"\.(\d+)\.")


def inspect(model: str | Path, *, verify: bool = False) -> dict[str, Any]:
    """Returns what a model folder's manifest and its ONNX files say, as JSON knows it.

    Args:
        model: a model folder, also one with several ONNX files, or an .onnx file.
        verify: compare the SHA-256 of every file that the manifest lists.

    Raises:
        ModelError: there is no such model, a file is damaged, or a hash differs.
    """
    path = Path(model)
    if path.is_dir():
        manifest, files = onnx_files(path, verify=verify)
        sizes = {
            file.relative_to(path).as_posix(): file.stat().st_size for file in sorted(path.rglob("*")) if file.is_file()
        }
    else:
        found = locate(path, verify=verify)
        manifest, files = found.manifest, [found.onnx]
        sizes = {path.name: path.stat().st_size}
    return {"path": str(path), "manifest": asdict(manifest) if manifest else None,
            "models": {file.name: _outline(file) for file in files}, "files": sizes}  # fmt: skip


def _outline(path: Path) -> dict[str, Any]:
    model = onnx_file.read(path)
    onnx_file.check_external(path, model)
    return {
        "ir_version": model.ir_version,
        "producer": model.producer,
        "opsets": model.opsets,
        "inputs": [asdict(spec) for spec in model.inputs],
        "outputs": [asdict(spec) for spec in model.outputs],
        "nodes": sum(model.operators.values()),
        "operators": dict(model.operators.most_common()),
        "custom_ops": {name: count for name, count in model.operators.items() if name.startswith("rocline::")},
        "weight_bytes": dict(model.weight_bytes),
        "external_tensors": len(model.external),
    }


def as_text(found: dict[str, Any]) -> str:
    """Returns the same for people."""
    lines = [found["path"]]
    manifest = found["manifest"]
    if manifest is None:
        lines.append("  no rocline.json: a plain ONNX model")
    else:
        source = manifest["source"]
        revision = f" at {source['revision']}" if source["revision"] else ""
        lines += [
            f"  source   {source['kind']} {source['name']}{revision}",
            f"  licence  {source['licence'] or 'unknown'}",
            f"  task     {manifest['task']}",
            f"  made for {manifest['target']}, {manifest['dtype']}, cache {manifest['cache']}",
            f"  made by  {', '.join(f'{name} {version}' for name, version in manifest['tools'].items())}",
        ]
        lines += [f"  note     {note}" for note in manifest["notes"]]
    for name, model in found["models"].items():
        lines += _model_lines(name, model)
    if manifest is not None and manifest["fusion"]:
        lines.append("fused at export")
        lines += [f"  {line}" for line in fusion_table.lines(manifest["fusion"])]
    if manifest is not None and manifest["parity"]:
        lines.append("parity at export")
        lines += [
            f"  {entry['model']} {entry['output']}: at most {entry['max_abs']:.3g}, mean {entry['mean_abs']:.3g} "
            f"(bound {entry['bound']:.3g}), against {entry['against']}, {entry['inputs']}"
            for entry in manifest["parity"]
        ]
    lines.append("files")
    lines += [f"  {size:>12,} bytes  {name}" for name, size in found["files"].items()]
    return "\n".join(lines)


def _model_lines(name: str, model: dict[str, Any]) -> list[str]:
    opsets = ", ".join(f"{domain} {version}" for domain, version in model["opsets"].items())
    weights = ", ".join(f"{size:,} bytes of {dtype}" for dtype, size in model["weight_bytes"].items())
    operators = ", ".join(f"{operator} {count}" for operator, count in model["operators"].items())
    lines = [f"{name}: IR {model['ir_version']}, opset {opsets}; made by {model['producer'] or 'unknown'}"]
    lines += [f"  in       {line}" for line in _specs(model["inputs"])]
    lines += [f"  out      {line}" for line in _specs(model["outputs"])]
    lines += [f"  weights  {weights or 'none'}", f"  {model['nodes']} nodes: {operators}"]
    if model["custom_ops"]:
        lines.append(f"  custom operators: {', '.join(model['custom_ops'])}")
    return lines


def _specs(specs: list[dict[str, Any]]) -> list[str]:
    """Returns a line for each tensor; those of a cache's layers, which differ by a number alone, share one."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for tensor in (TensorSpec(**spec) for spec in specs):
        shape = f"[{', '.join(map(str, tensor.shape))}]"
        alike.setdefault((_LAYER.sub(".N.", tensor.name, count=1), tensor.dtype, shape), []).append(tensor.name)
    lines = []
    for (_, dtype, shape), names in alike.items():
        name = names[0]
        if len(names) > 1:
            first, last = (_LAYER.search(names[place]) for place in (0, -1))
            assert first is not None and last is not None
            name = f"{name[: first.end(1)]}..{last[1]}{name[first.end(1) :]}"
        lines.append(f"{name}: {dtype} {shape}")
    return lines
