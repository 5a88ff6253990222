"""The ``rocline`` command: a root group whose commands are entry points of the group ``rocline.commands``.

Each folder owns its commands (``export/cli.py``, ``runtime/cli.py``, ``custom_ops/cli.py``); a module behind an entry
point imports click and nothing heavy, so that ``rocline --help`` stays under 0.3 s.
"""

import contextlib
import os
import signal
import sys
from importlib.metadata import EntryPoint, distribution, version
from typing import Any

import click

from rocline.errors import RoclineError


class _ReaderGone(Exception):
    """The reader closed the pipe. Click would turn a bare BrokenPipeError into exit status 1."""


class _Commands(click.Group):
    def _entry_points(self) -> dict[str, EntryPoint]:
        found = distribution("rocline").entry_points.select(group="rocline.commands")
        return {entry.name: entry for entry in found}

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._entry_points())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._entry_points().get(cmd_name)
        command: click.Command | None = entry.load() if entry else None
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("rocline"), prog_name="rocline")
def root() -> None:
    """Hugging Face models as fast ONNX models on AMD GPUs, with the same answers on a CPU."""


def main() -> None:
    """Runs the command line; every RoclineError becomes one line on stderr and exit status 1.

    Ctrl-C ends with status 130 and a reader that closed the pipe with 141, as a shell expects; neither prints a
    traceback.
    """
    try:
        status = root.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except RoclineError as error:
        click.echo(f"rocline: {error}", err=True)
        status = 1
    except (click.Abort, KeyboardInterrupt):
        status = 128 + signal.SIGINT
    except _ReaderGone:
        # Python would flush stdout once more on the way out and complain: give it somewhere to write.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
