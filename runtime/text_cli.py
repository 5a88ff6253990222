"""The commands ``generate``, ``chat`` and ``embed``: parse, call the API, print."""

import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rocline.errors import InputError
from rocline.runtime.cli_options import session_options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rocline.runtime.generator import Generator
    from rocline.runtime.text_stream import Generation

_MODEL = click.argument("model", type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _generation_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds what `rocline.runtime.generator.Options` holds, under the same names."""
    for decorator in reversed(_GENERATION_OPTIONS):
        command = decorator(command)
    return command


_GENERATION_OPTIONS = (
    click.option("--max-new-tokens", type=int, default=256, show_default=True, help="Longest answer."),
    click.option("--temperature", type=float, default=0.0, show_default=True, help="0: always the likeliest token."),
    click.option("--top-k", type=int, default=0, help="Sample from this many of the likeliest tokens; 0: from all."),
    click.option("--top-p", type=float, default=1.0, help="Sample from the likeliest tokens up to this share; 1: all."),
    click.option(
        "--min-p", type=float, default=0.0, help="Leave out tokens below this share of the likeliest; 0: off."
    ),
    click.option("--repetition-penalty", type=float, default=1.0, help="Above 1: repeat less; 1: off."),
    click.option("--seed", type=int, help="Makes a sampled answer reproducible."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; repeatable."),
)
_CAPACITY = click.option(
    "--capacity", type=int, help="Most tokens of prompt and answer together.  [default: the model's context]"
)


@click.command()
@_MODEL
@click.option("--prompt", required=True, metavar="TEXT", help="The text to continue, taken as it is; -: from stdin.")
@_generation_options
@_CAPACITY
@_JSON
@session_options
def generate(
    model: Path, prompt: str, capacity: int | None, as_json: bool, session_arguments: dict[str, Any], **options: Any
) -> None:
    """Continue a text with MODEL, a model folder.

    The answer streams to stdout; a line with its length, speed and providers goes to stderr.
    """
    from rocline.runtime.generator import Generator

    if prompt == "-":
        _take_any_bytes()
        prompt = sys.stdin.read().removesuffix("\n")
    with _interrupted_at_once():
        generator = Generator(model, capacity=capacity, **session_arguments)
    with generator, generator.stream(prompt, **options) as stream:
        if not as_json:
            for piece in stream:
                click.echo(piece, nl=False)
            click.echo()
        result = stream.result()
        active = generator.report.active
    if as_json:
        from rocline.runtime.tensors import to_json

        click.echo(to_json({**vars(result), "tokens_per_s": result.decode_rate, "providers": active}))
    else:
        click.echo(_statistics(result, active), err=True)


@click.command()
@_MODEL
@click.option("--system", metavar="TEXT", help="The system message, which sets the tone.")
@_generation_options
@_CAPACITY
@session_options
def chat(
    model: Path, system: str | None, capacity: int | None, session_arguments: dict[str, Any], **options: Any
) -> None:
    """Talk with MODEL, a model folder with a chat template.

    Each line is a message. /reset forgets the conversation; /exit or Ctrl-D ends. In a terminal Ctrl-C stops an
    answer.
    """
    from rocline.runtime.generator import Generator

    _take_any_bytes()
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        import readline  # noqa: F401 - gives input() line editing and history
    start = [{"role": "system", "content": system}] if system is not None else []
    messages = list(start)
    with _interrupted_at_once():
        generator = Generator(model, capacity=capacity, **session_arguments)
    with generator, generator.prefix_cache() as cache:
        options["cache"] = cache
        while (line := _read_line(interactive)) not in (None, "/exit"):
            if line == "/reset":
                messages = list(start)
            elif line:
                messages += _turn(generator, [*messages, {"role": "user", "content": line}], options, interactive)


@click.command()
@_MODEL
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="A text; repeatable.")
@click.option(
    "--file", type=click.File(encoding="utf-8", errors="surrogateescape"), help="A file with a text a line; -: stdin."
)
@click.option("--prompt-name", metavar="NAME", help="Which of the model's own prompts to put in front.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE.npy", help="Save the vectors: float32.")
@click.option("--force", is_flag=True, help="Overwrite the saved vectors.")
@click.option("--similarity", is_flag=True, help="Print the cosine similarity of each pair.")
@_JSON
@session_options
def embed(
    model: Path,
    texts: tuple[str, ...],
    file: Any,
    prompt_name: str | None,
    output: Path | None,
    force: bool,
    similarity: bool,
    as_json: bool,
    session_arguments: dict[str, Any],
) -> None:
    """Turn texts into vectors with MODEL, a model folder."""
    lines = list(texts)
    if file is not None:
        lines += [line.rstrip("\r\n") for line in file]
    if not lines and file is None:
        raise click.UsageError("no texts: pass --text or --file.")
    if output is not None and output.suffix != ".npy":
        raise click.BadParameter(f"{output}, expected a file name that ends in .npy", param_hint="--output")
    if output is not None and output.exists() and not force:
        raise InputError(f"{output}: exists, pass --force to overwrite it")

    from rocline.runtime.embedder import Embedder
    from rocline.runtime.tensors import save, to_json

    with _interrupted_at_once():
        embedder = Embedder(model, **session_arguments)
    with embedder:
        vectors = embedder.embed(lines, prompt_name=prompt_name)
        active, source = embedder.report.active, embedder.config.source
    if output is not None:
        save({"vectors": vectors}, {"vectors": output})
    table = _similarity(vectors) if similarity else None
    if as_json:
        document: dict[str, Any] = {"texts": lines, "vectors": vectors.tolist(), "pooling": source, "providers": active}
        click.echo(to_json(document | ({} if table is None else {"similarity": table.tolist()})))
        return
    if table is not None:
        for row, line in zip(table, lines, strict=True):
            click.echo(" ".join(f"{value:7.4f}" for value in row) + f"  {line}")
    elif output is None:
        for vector, line in zip(vectors, lines, strict=True):
            click.echo(" ".join(f"{value:.6f}" for value in vector) + f"  {line}")
    click.echo(f"{len(lines)} vectors of {vectors.shape[1]} numbers, {source}, {', '.join(active)}", err=True)


@contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the process while a model loads: one long call, in which Python's own handler would wait."""
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _take_any_bytes() -> None:
    """Reads bytes of stdin that are no UTF-8 as lone surrogates, which the tokenizer refuses by their place."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def _turn(
    generator: "Generator", messages: list[dict[str, str]], options: dict[str, Any], interactive: bool
) -> list[dict[str, str]]:
    """Prints the answer to the last message; returns what the conversation gains by it, nothing if there was none."""
    pieces: list[str] = []
    try:
        with generator.stream_chat(messages, **options) as stream:
            for piece in stream:
                pieces.append(piece)
                click.echo(piece, nl=False)
    except KeyboardInterrupt:
        if not interactive:
            raise
    except InputError as error:
        if not interactive:
            raise
        click.echo(f"rocline: {error}; /reset forgets the conversation", err=True)
        return []
    click.echo()
    return [messages[-1], {"role": "assistant", "content": "".join(pieces)}] if pieces else []


def _read_line(interactive: bool) -> str | None:
    """Returns the next line without white space around it, or None at the end of the input."""
    if not interactive:
        line = sys.stdin.readline()
        return line.strip() if line else None
    try:
        return input("> ").strip()
    except EOFError:
        click.echo()
        return None


def _similarity(vectors: "NDArray[np.float32]") -> "NDArray[np.float32]":
    from rocline.runtime.pooling import normalized

    unit = normalized(vectors)
    return unit @ unit.T


def _statistics(result: "Generation", active: tuple[str, ...]) -> str:
    rate = f", {result.decode_rate:.1f} tokens/s" if result.decode_rate else ""
    return (
        f"{len(result.tokens)} tokens{rate}, {result.prefill_s:.2f} s for a prompt of {result.prompt_tokens}, "
        f"ended by {result.finish_reason}, {', '.join(active)}"
    )
