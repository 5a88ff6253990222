"""``rocline ops``: the custom operators, their code objects and the cache of those compiled at first use."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from rocline.errors import RoclineError


@click.group()
def ops() -> None:
    """Show the custom operators and build their GPU code."""


@ops.command("list")
def list_ops() -> None:
    """List the operators, and the architectures with GPU code."""
    from rocline import custom_ops

    click.echo(f"library  {custom_ops.library_path()}")
    folders = custom_ops.code_object_folders()
    for spec in custom_ops.specs().values():
        files = {path for folder in folders for path in folder.glob(f"*/{spec.folder}.*")}
        click.echo(f"{spec.name}  {', '.join(spec.dtypes)}  on CPU, ROCM and CUDA")
        click.echo(f"  code objects: {', '.join(sorted({path.parent.name for path in files})) or 'none'}")


@ops.command()
@click.option("--arch", "architectures", multiple=True, help="Such as gfx1152; repeatable.  [default: all]")
@click.option("--op", "names", multiple=True, help="Folder of an operator; repeatable.  [default: all]")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def build(architectures: tuple[str, ...], names: tuple[str, ...], out: Path) -> None:
    """Compile kernels into the folder OUT.

    ROCLINE_CODE_OBJECTS=OUT makes the library use them.
    """
    from rocline.custom_ops.build import ARCHITECTURES, build_op, op_folders

    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for name in names or [folder.name for folder in op_folders()]:
        built = build_op(name, architectures or ARCHITECTURES, out)
        click.echo(f"{name}: {len(built)} code objects in {out}")


@ops.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
def table(out: Path) -> None:
    """Write the kernels' registers and memory to the file OUT.

    A Markdown page with a table an operator, for every architecture that the package was built for.
    """
    from rocline.custom_ops.kernel_table import kernel_table

    text = kernel_table()
    with _writing(out):
        out.write_text(text)


@ops.command()
@click.option("--clear", is_flag=True, help="Delete them.")
def cache(clear: bool) -> None:
    """Show what hiprtc compiled on this machine."""
    from rocline.custom_ops import cache_folder

    folder = cache_folder()
    files = sorted(folder.glob("*.co"))
    click.echo(f"{folder}: {len(files)} code objects, {sum(path.stat().st_size for path in files) / 1024:.0f} KB")
    for path in files:
        if clear:
            path.unlink(missing_ok=True)
        click.echo(f"  {path.name}{'  deleted' if clear else ''}")


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RoclineError(f"{out}: cannot be written: {error.strerror}") from None
