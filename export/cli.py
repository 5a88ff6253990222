"""``rocline export`` and ``rocline models``."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--task", help="Hugging Face task; by default the recipe's, or what the architecture tells.")
@click.option("--dtype", default="fp32", show_default=True, help="fp32, fp16 or bf16.")
@click.option("--cache", default="static", show_default=True, help="KV cache of a decoder: static or growing.")
@click.option("--sampling-head", is_flag=True, help="Let the graph choose the next token, with a static cache.")
@click.option("--target", default="rocm", show_default=True, help="The runtime that the graph is made for.")
@click.option("--external-data", is_flag=True, help="Keep the weights in a file beside the graph.")
@click.option("--opset", type=int, help="Opset of the graph; by default Optimum's for the architecture.")
@click.option("--force", is_flag=True, help="Replace the model folder at OUT, once the new one is complete.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model.")
@click.option(
    "--parity-bound",
    type=float,
    help="Largest difference to PyTorch that is accepted, relative where an output's values pass 1.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON instead of a line.")
def export(source: str, out: Path, as_json: bool, **arguments: Any) -> None:
    """Export SOURCE into the model folder OUT.

    SOURCE is a recipe (see 'rocline models'), a Hugging Face folder, a .gguf or .onnx file, or a hub id.
    """
    from rocline.export.progress import Progress
    from rocline.runtime import fusion_table

    started = time.monotonic()
    with Progress(sys.stderr) as progress:
        from rocline.export.pipeline import export_model

        manifest = export_model(source, out, progress=progress, **arguments)
    if as_json:
        click.echo((out / "rocline.json").read_text("utf-8"), nl=False)
        return
    for line in fusion_table.lines({name: asdict(entry) for name, entry in manifest.fusion.items()}):
        click.echo(line, err=True)
    for note in manifest.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"licence: {manifest.source.licence or 'not stated by the source'}", err=True)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    worst = max(manifest.parity, key=lambda entry: entry.max_abs, default=None)
    parity = (
        f"{worst.max_abs:.1e} from PyTorch at most (bound {worst.bound:.0e})" if worst else "nothing to compare with"
    )
    click.echo(f"{out}: {size / 1e6:.1f} MB, {parity}, {time.monotonic() - started:.1f} s")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    """List the recipes: models that rocline is known to export."""
    from rocline.export import recipes

    rows: list[dict[str, Any]] = [
        {
            "name": recipe.name,
            "task": recipe.task,
            "licence": recipe.licence,
            "summary": recipe.summary,
            "sources": [_source(source) for source in recipe.sources],
        }
        for recipe in recipes.available()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    columns = ("name", "task", "licence")
    widths = {column: max(len(column), *(len(str(row[column])) for row in rows)) for column in columns}
    click.echo("  ".join(column.ljust(widths[column]) for column in columns) + "  sources")
    for row in rows:
        shown = ", ".join(f"{source['name']} ({source['state']})" for source in row["sources"])
        click.echo("  ".join(str(row[column]).ljust(widths[column]) for column in columns) + f"  {shown}")


def _source(source: Any) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    from rocline.export import recipes

    if isinstance(source, recipes.HubSource):
        return {"kind": "hub", "name": source.hub, "state": "on the hub"}
    if isinstance(source, recipes.RandomSource):
        return {"kind": "random", "name": "random weights", "state": "present"}
    try:
        found = version(source.package)
    except PackageNotFoundError:
        return {"kind": "package", "name": source.package, "state": f"missing: {source.install_command}"}
    state = "present" if found == source.version else f"{found} installed, expected {source.version}"
    return {"kind": "package", "name": source.package, "state": state}
