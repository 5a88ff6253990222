"""Runs the `rocline` command inside the test's own process, or in one of its own."""

import contextlib
import io
import subprocess
import sys
from dataclasses import dataclass
from unittest import mock

from rocline import cli


@dataclass
class Result:
    status: int
    out: str
    err: str


def rocline(*arguments):
    """Runs the command and returns its exit status and what it printed through Python."""
    out, err = io.StringIO(), io.StringIO()
    status = None
    argv = mock.patch.object(sys, "argv", ["rocline", *map(str, arguments)])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code
    return Result(status, out.getvalue(), err.getvalue())


def rocline_process(*arguments):
    """Runs the command in a process of its own: all that reaches its stdout and stderr, whoever wrote it."""
    command = [sys.executable, "-m", "rocline", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True)
    return Result(ran.returncode, ran.stdout, ran.stderr)
