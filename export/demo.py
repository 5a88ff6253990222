"""``rocline demo``: two real models from their published weights to answers, with what it took."""

import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rocline.runtime.report import Report

_SENTENCES = (
    "A kernel adds two vectors on the GPU.",
    "The graphics card sums a pair of arrays.",
    "My grandmother bakes bread on Sundays.",
    "Fresh loaves come out of the oven.",
)
_QUESTION = "Why do graphics processors suit neural networks?"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Where to put the models.  [default: a temporary folder]")
@click.option("--keep", is_flag=True, help="Keep the temporary folder.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Length of the answer."
)
def demo(out: Path | None, keep: bool, max_new_tokens: int) -> None:
    """Export MiniLM and SmolLM2-135M and run both.

    MiniLM tells which sentences mean the same, SmolLM2 answers a question; their weights are the published ones. Models
    already in --out are replaced.
    """
    stages = _Stages()
    with _folder(out, keep) as folder, _without_warnings():
        minilm, smollm2 = folder / "minilm", folder / "smollm2"
        with stages("export MiniLM"):
            _export("minilm", minilm)
        with stages("compare sentences with it"):
            report = _compare(minilm)
        with stages("export SmolLM2-135M"):
            _export("smollm2", smollm2)
        with stages("ask it"):
            _ask(smollm2, max_new_tokens)
        _show(report)
        click.echo(f"\n{stages}")
        if out or keep:
            click.echo(f"The models are in {folder}: try  rocline chat {smollm2}")


class _Stages:
    """Heads each stage with its number and name, and sums up what each took."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        click.secho(f"\n{len(self._seconds) + 1}. {name[0].upper()}{name[1:]}", bold=True)
        started = time.perf_counter()
        yield
        self._seconds[name] = time.perf_counter() - started

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items())
        return f"{sum(self._seconds.values()):.1f} s in all: {parts}"


@contextlib.contextmanager
def _folder(out: Path | None, keep: bool) -> Iterator[Path]:
    if out or keep:
        yield out or Path(tempfile.mkdtemp(prefix="rocline-demo-"))
    else:
        with tempfile.TemporaryDirectory(prefix="rocline-demo-") as folder:
            yield Path(folder)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keeps the line on a provider's absence out of the answers: the report at the end says it in full."""
    logger = logging.getLogger("rocline")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _export(name: str, out: Path) -> None:
    from rocline.export.pipeline import export_model
    from rocline.export.progress import Progress

    with Progress(sys.stdout) as progress:
        manifest = export_model(name, out, force=True, progress=progress)
    worst = max(manifest.parity, key=lambda entry: entry.max_abs)
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    source = manifest.source
    click.echo(f"   weights:        {source.name} {source.revision}, licence {source.licence}")
    click.echo(f"   ONNX model:     {size:.0f} MB with its tokenizer")
    click.echo(f"   against {worst.against}: worst difference {worst.max_abs:.1e} on {worst.inputs}")


def _compare(model: Path) -> "Report":
    """Prints each sentence's cosine similarity to the others; the vectors have length 1."""
    from rocline.runtime.embedder import Embedder

    with Embedder(model) as embedder:
        vectors = embedder.embed(list(_SENTENCES))
        report = embedder.report
    width = max(map(len, _SENTENCES)) + 4
    click.echo(" " * (width + 3) + "".join(f"{index + 1:>7}" for index in range(len(_SENTENCES))))
    for index, (sentence, row) in enumerate(zip(_SENTENCES, vectors @ vectors.T, strict=True)):
        click.echo(f"   {f'{index + 1}  {sentence}':{width}}" + "".join(f"{value:7.2f}" for value in row))
    return report


def _ask(model: Path, max_new_tokens: int) -> None:
    from rocline.runtime.generator import Generator

    click.echo(f"   > {_QUESTION}\n   ", nl=False)
    with Generator(model) as generator:
        messages = [{"role": "user", "content": _QUESTION}]
        with generator.stream_chat(messages, max_new_tokens=max_new_tokens, temperature=0.0) as stream:
            for piece in stream:
                click.echo(piece.replace("\n", "\n   "), nl=False)
            answer = stream.result()
    ending = {"length": "cut at --max-new-tokens", "eos": "finished"}.get(answer.finish_reason, answer.finish_reason)
    rate = f", {answer.decode_rate:.1f} tokens/s after the first" if answer.decode_rate else ""
    click.echo(f"\n   [{len(answer.tokens)} tokens, {ending}{rate}]")


def _show(report: "Report") -> None:
    click.secho("\nWhere it ran", bold=True)
    click.echo(f"   asked for:  {', '.join(report.requested)}")
    click.echo(f"   ran on:     {', '.join(report.active)}")
    for fallback in report.fallbacks:
        click.echo(f"   {fallback.provider} could not be used: {fallback.reason}")
        click.echo(f"   to mend it: {fallback.fix}")
