"""The root command: help, version, exit statuses, and errors of one line."""

import os
import signal
import subprocess
import sys
from importlib import metadata

import pytest
from command_line import rocline, rocline_process

from rocline import cli
from rocline.errors import ModelError

COMMANDS = [entry.name for entry in metadata.distribution("rocline").entry_points.select(group="rocline.commands")]


def test_help_lists_every_command():
    result = rocline("--help")
    assert (result.status, result.err) == (0, "")
    for name in COMMANDS:
        assert f"\n  {name} " in result.out
    assert "..." not in result.out.partition("Commands:")[2]  # each command's first sentence fits its line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    result = rocline(name, "--help")
    assert (result.status, result.err) == (0, "")
    assert f"rocline {name}" in result.out


def test_commands_take_h_for_help():
    # In a process of its own: click remembers for good what a command was told when some test called it by itself.
    assert rocline_process("doctor", "-h") == rocline_process("doctor", "--help")


def test_version():
    assert rocline("--version").out == f"rocline, version {metadata.version('rocline')}\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["run", "x", "--nonsense"]])
def test_usage_errors(arguments):
    result = rocline(*arguments)
    assert (result.status, result.out) == (2, "")
    assert "Error: " in result.err


def raise_from_a_command(monkeypatch, error):
    def fail(**_):
        raise error

    monkeypatch.setattr(cli.root, "main", fail)


def test_an_error_is_one_line(monkeypatch):
    raise_from_a_command(monkeypatch, ModelError("it broke"))
    result = rocline()
    assert (result.status, result.out, result.err) == (1, "", "rocline: it broke\n")


def test_a_bug_is_not_hidden(monkeypatch):
    raise_from_a_command(monkeypatch, ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_ctrl_c(monkeypatch):
    raise_from_a_command(monkeypatch, KeyboardInterrupt())
    result = rocline()
    assert (result.status, result.out, result.err) == (128 + signal.SIGINT, "", "")


def test_a_reader_that_left():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        ran = subprocess.run([sys.executable, "-m", "rocline", "doctor"], stdout=closed, stderr=subprocess.PIPE)
    assert (ran.returncode, ran.stderr) == (128 + signal.SIGPIPE, b"")
