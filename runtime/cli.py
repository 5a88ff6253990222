"""The commands ``run``, ``inspect`` and ``doctor``: parse, call the API, print."""

import re
from pathlib import Path
from typing import Any

import click

from rocline.runtime.cli_options import session_options

_SHAPE = re.compile(r"(\d+(x\d+)*)?")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--input", "inputs", multiple=True, metavar="NAME=FILE", help="An input's .npy or .npz file; repeatable.")
@click.option("--random", "made_up", is_flag=True, help="Make up the inputs that are not given.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of made-up inputs.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME:AxB", help="Shape of a made-up input; repeatable.")
@click.option("--dim", "dims", multiple=True, metavar="SYMBOL=N", help="Size of an open dimension; else 1; repeatable.")
@click.option(
    "--output", "--output-dir", "output", type=click.Path(path_type=Path), help="Save outputs as .npy in here."
)
@click.option("--force", is_flag=True, help="Overwrite saved outputs.")
@click.option("--runs", type=click.IntRange(min=1), help="Time this many runs, after the warm-up.")
@click.option("--warmup", type=click.IntRange(min=0), default=1, show_default=True, help="Runs before the timed ones.")
@click.option("--placement", is_flag=True, help="Say which nodes run where; creates the session twice.")
@click.option("--verify", is_flag=True, help="Compare the files' SHA-256 with the manifest first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@session_options
def run(
    model: Path,
    inputs: tuple[str, ...],
    made_up: bool,
    seed: int,
    shapes: tuple[str, ...],
    dims: tuple[str, ...],
    output: Path | None,
    force: bool,
    runs: int | None,
    warmup: int,
    placement: bool,
    verify: bool,
    as_json: bool,
    session_arguments: dict[str, Any],
) -> None:
    """Run MODEL once on tensors from files, or made up.

    MODEL is a model folder or an .onnx file. Prints each output's dtype, shape and range, and where the model ran.
    Made-up numbers are normally distributed, made-up whole numbers are 0 or 1.
    """
    files = dict(_pair(text, "=", "--input", "NAME=FILE") for text in inputs)
    sizes = {name: _number(size, "--dim") for name, size in (_pair(t, "=", "--dim", "SYMBOL=N") for t in dims)}
    wanted = {name: _parse_shape(size) for name, size in (_pair(t, ":", "--shape", "NAME:AxB") for t in shapes)}
    if (shapes or dims) and not made_up:
        raise click.UsageError("--shape and --dim are for made-up inputs: add --random.")

    from rocline.runtime import tensors
    from rocline.runtime.session import Session
    from rocline.runtime.timing import time_runs

    arrays = {name: tensors.load(name, Path(file)) for name, file in files.items()}
    with Session(model, verify=verify, **session_arguments) as session:
        if made_up:
            rest = [spec for spec in session.inputs if spec.name not in arrays]
            arrays |= tensors.make_up(rest, seed=seed, sizes=sizes, shapes=wanted)
        names = [spec.name for spec in session.outputs]
        targets = tensors.output_files(names, output, force=force) if output else {}
        outputs = session.run(arrays)
        timing = time_runs(lambda: session.run(arrays), runs=runs, warmup=warmup) if runs else None
        if targets:
            tensors.save(outputs, targets)
        described = [tensors.describe(name, array) for name, array in outputs.items()]
        report = session.report.as_dict(placement=placement)
    if as_json:
        click.echo(tensors.to_json({"outputs": described, "report": report, "timing": timing}))
        return
    for entry in described:
        click.echo(tensors.describe_line(entry))
    click.echo(session.report.as_text(placement=placement))
    if timing:
        click.echo(f"median {timing['median_ms']:.3f} ms, p99 {timing['p99_ms']:.3f} ms over {runs} runs")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Compare the files' SHA-256 with the manifest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(model: Path, verify: bool, as_json: bool) -> None:
    """Show what is in MODEL, a model folder or an .onnx file.

    That is its source, interface, operators, parity at export, and files. Loads no weights.
    """
    from rocline.runtime import inspection

    found = inspection.inspect(model, verify=verify)
    click.echo(_json(found) if as_json else inspection.as_text(found))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Show what this machine can run, and what is missing.

    Exits with 1 if it can run nothing.
    """
    from rocline.runtime import doctor as facts

    found = facts.diagnose()
    click.echo(_json(found.as_dict()) if as_json else facts.as_text(found))
    if found.problem:
        raise SystemExit(1)


def _json(document: Any) -> str:
    import json

    return json.dumps(document, indent=2, ensure_ascii=False)


def _pair(text: str, separator: str, option: str, form: str) -> tuple[str, str]:
    # A tensor's name may hold a colon, a shape never does.
    name, found, value = text.rpartition(separator) if separator == ":" else text.partition(separator)
    if not found or not name or (not value and separator == "="):
        raise click.BadParameter(f"{text!r}, expected {form}", param_hint=option)
    return name, value


def _number(text: str, option: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise click.BadParameter(f"{text!r}, expected a whole number", param_hint=option)
    return int(text)


def _parse_shape(text: str) -> tuple[int, ...]:
    if not _SHAPE.fullmatch(text):
        raise click.BadParameter(f"{text!r}, expected sizes as in 1x512", param_hint="--shape")
    return tuple(int(size) for size in text.split("x") if size)
