"""``rocline ops``: the custom operators, their code objects and the cache of those compiled at first use."""

from pathlib import Path

import click


@click.group()
def ops() -> None:
    """The custom operators and their GPU code."""


@ops.command("list")
def list_ops() -> None:
    """Every operator, and the architectures that its GPU code is built for."""
    from rocline import custom_ops

    click.echo(f"library  {custom_ops.library_path()}")
    folders = custom_ops.code_object_folders()
    for spec in custom_ops.specs().values():
        files = {path for folder in folders for path in folder.glob(f"*/{spec.folder}.*")}
        click.echo(f"{spec.name}  {', '.join(spec.dtypes)}  on CPU, ROCM and CUDA")
        click.echo(f"  code objects: {', '.join(sorted({path.parent.name for path in files})) or 'none'}")


@ops.command()
@click.option("--arch", "architectures", multiple=True, help="an architecture such as gfx1152; default: all")
@click.option("--op", "names", multiple=True, help="an operator's folder such as add_scale; default: all")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def build(architectures: tuple[str, ...], names: tuple[str, ...], out: Path) -> None:
    """Compile code objects into OUT; ROCLINE_CODE_OBJECTS=OUT makes the library use them."""
    from rocline.custom_ops.build import ARCHITECTURES, build_op, op_folders

    for name in names or [folder.name for folder in op_folders()]:
        built = build_op(name, architectures or ARCHITECTURES, out)
        click.echo(f"{name}: {len(built)} code objects in {out}")


@ops.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
def table(out: Path) -> None:
    """Write the kernels' registers and memory for every architecture to OUT, as Markdown."""
    from rocline.custom_ops.kernel_table import kernel_table

    out.write_text(kernel_table())


@ops.command()
@click.option("--clear", is_flag=True, help="delete what is in it")
def cache(clear: bool) -> None:
    """Show (or clear) the code objects that hiprtc compiled on this machine."""
    from rocline.custom_ops import cache_folder

    folder = cache_folder()
    files = sorted(folder.glob("*.co"))
    click.echo(f"{folder}: {len(files)} code objects, {sum(path.stat().st_size for path in files) / 1024:.0f} KB")
    for path in files:
        if clear:
            path.unlink(missing_ok=True)
        click.echo(f"  {path.name}{'  deleted' if clear else ''}")
