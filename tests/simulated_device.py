"""Runs commands on the simulated HIP device, and reads what it says about them."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "hipsim"
PROGRAMS = FOLDER / "programs"
MODES = ("sync", "threaded", "lazy")
FINDINGS = 86
"""The exit status of a command that succeeded with findings."""


@dataclass(frozen=True)
class Call:
    """A line of the call log.

    Attributes:
        function: as ``hipMemcpyAsync``.
        arguments: by name, as text; ``stream`` is ``null`` or the stream's name.
        number: of the call within its process.
        thread: which thread, in the order of their first calls.
        injected: the code that HIPSIM_FAIL made it return, 0 without.
    """

    function: str
    arguments: Mapping[str, str]
    number: int
    thread: int
    injected: int


@dataclass(frozen=True)
class Finished:
    """What became of a command.

    Attributes:
        status: its exit status, `FINDINGS` if that was 0 and there are findings.
        output: its standard output.
        errors: its standard error, the findings last.
        log: the lines of its call log, if asked for.
    """

    status: int
    output: str
    errors: str
    log: tuple[Mapping[str, Any], ...] = ()

    @property
    def findings(self) -> list[str]:
        """``race: write after read: ...``, one a finding."""
        return re.findall(r"^hipsim: (.*)$", self.errors, re.MULTILINE)

    def calls(self, begin: str = "", end: str = "") -> list[Call]:
        """The calls between two marks (hipsim_mark) of the log, or all."""
        lines = list(self.log)
        marks = [line.get("mark") for line in lines]
        first = marks.index(begin) if begin else 0
        last = marks.index(end, first) if end else len(lines)
        return [_call(line) for line in lines[first:last] if "call" in line]


def _call(line: Mapping[str, Any]) -> Call:
    arguments = dict(part.split("=", 1) for part in line["args"].split(", ") if "=" in part)
    return Call(line["call"], arguments, line["number"], line["thread"], line.get("injected", 0))


def run(
    command: Sequence[object],
    mode: str = "sync",
    *,
    log: bool = False,
    timeout: float = 900,
    text: str = "",
    **settings: object,
) -> Finished:
    """Runs a command on the simulated device.

    Args:
        command: the program and its arguments.
        mode: how streams run.
        log: whether to keep a call log.
        timeout: seconds, after which the test fails: for what hangs, not for what is slow on a busy machine.
        text: its standard input.
        settings: more variables, as ``HIPSIM_FAIL="hipMalloc:1:2"``.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        environ = {**os.environ, "HIPSIM_MODE": mode, **{name: str(value) for name, value in settings.items()}}
        if log:
            environ["HIPSIM_LOG"] = str(path)
        _build(environ.get("HIPSIM_ARCH", ""))
        words = [str(FOLDER / "run"), *map(str, command)]
        status, output, errors = _finish(words, environ, text, timeout)
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return Finished(status, output, errors, tuple(map(json.loads, lines)))


@functools.cache
def _build(architecture: str) -> None:
    """Builds the device and the kernels for it, which may take minutes that are none of the command's."""
    environ = {**os.environ, "HIPSIM_ARCH": architecture}
    done = subprocess.run([FOLDER / "run", "true"], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _finish(words: Sequence[str], environ: Mapping[str, str], text: str, timeout: float) -> tuple[int, str, str]:
    """Exit status, output and errors of a command; ends it with all its children where it takes too long."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, env=environ, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(text, timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output, errors


@functools.cache
def cases(
    program: str, mode: str = "sync", *, arguments: tuple[str, ...] = (), settings: tuple[tuple[str, str], ...] = ()
) -> dict[str, dict[str, Any]]:
    """Runs a program of hipsim/programs once, and returns what it says about each of its cases."""
    done = run([sys.executable, PROGRAMS / program, *arguments], mode, **dict(settings))
    assert done.status == 0, f"{program} in {mode} mode ended with {done.status}:\n{done.errors}\n{done.output}"
    results: dict[str, dict[str, Any]] = json.loads(done.output.splitlines()[-1])
    return results


def kinds(findings: Sequence[str]) -> list[str]:
    """``race``, ``leak``, ...: the first word of each finding."""
    return [finding.split(":")[0] for finding in findings]
