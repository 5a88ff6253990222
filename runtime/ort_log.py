"""ONNX Runtime's own lines: kept off the terminal, read where they hold a fact, passed on to the logger on request.

ONNX Runtime writes its log to file descriptor 2 and offers no hook in Python; its Python package prints on stdout when
a provider throws while a session is created, and then goes on without that provider.
"""

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

LOGGER = logging.getLogger("rocline")

VERBOSE, WARNING, ERROR, FATAL = 0, 2, 3, 4
"""ONNX Runtime's severities."""

_LINE = re.compile(r"(?:\x1b\[[\d;]*m)?\d{4}-\d\d-\d\d [\d:.]+ \[([VIWEF]):onnxruntime:[^\]]*\] ?(.*)")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_SOURCE = re.compile(r"\S+\.(?:cc|cpp|h|hpp|cu):\d+ ")
_INSIDE_NODE = re.compile(r"Non-zero status code returned while running (\S+) node\. Name:'([^']*)' Status Message: ")
# "[with ERRTYPE = hipError_t; ...] HIP failure 2: hipErrorOutOfMemory ; GPU=0 ; ... ; expr=hipMalloc(&p, size); "
_SIGNATURE = re.compile(r"(?:\[with ERRTYPE = [^\]]*\] )+(?=\w+ failure )")
_DEVICE_ERROR = re.compile(r"(\w+ failure -?\d+: [^;]*?) ; GPU=.*? ; expr=([^(;]+)[^;]*(?:; ?|$)")
_PROVIDER_ERROR = re.compile(r"^EP Error (.*?)\s+when using \[", re.MULTILINE | re.DOTALL)
_descriptor = threading.Lock()


@dataclass
class Log:
    """What was logged, without time and place.

    Attributes:
        lines: every message.
        errors: those that tell of an error, shortened by `essence`.
    """

    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def captured() -> Iterator[Log]:
    """Collects what ONNX Runtime logs inside the block; the log is filled when the block ends.

    What anything else writes to stdout or stderr meanwhile is passed on when the block ends. One block at a time: other
    threads wait for it.
    """
    log = Log()
    printed = io.StringIO()
    with _descriptor, tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        saved = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            try:
                with contextlib.redirect_stdout(printed):
                    yield log
            finally:
                sys.stderr.flush()
                os.dup2(saved, 2)
        finally:
            os.close(saved)
            file.seek(0)
            others = _sort(file.read().decode("utf-8", "replace"), log)
            if others:
                os.write(2, others.encode())
    errors = [essence(error) for error in _PROVIDER_ERROR.findall(printed.getvalue())]
    log.errors[:0] = errors
    if not errors and printed.getvalue():
        sys.stdout.write(printed.getvalue())


def _sort(text: str, log: Log) -> str:
    """Adds ONNX Runtime's lines to ``log`` and returns the others."""
    others = []
    for line in text.splitlines(keepends=True):
        match = _LINE.match(line)
        if match:
            message = _COLOUR.sub("", match[2])
            LOGGER.debug("onnxruntime: %s", message)
            log.lines.append(message)
            if match[1] in "EF":
                log.errors.append(essence(message))
        elif _COLOUR.sub("", line).strip():
            others.append(line)
    return "".join(others)


def essence(error: Exception | str) -> str:
    """Returns the one line of an ONNX Runtime error that says what is wrong, without codes and source places."""
    text = str(error).strip().splitlines()
    line = " ".join(part.strip() for part in text if part.strip())
    line = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    # A failure inside a subgraph comes once for each node around it: the innermost says what happened.
    *_, line = _INSIDE_NODE.sub(r"\n\1 node '\2': ", line).rpartition("\n")
    while match := _SOURCE.search(line):
        line = line[: match.start()] + _after_signature(line[match.end() :], whole=match[0].startswith("/"))
    line = _DEVICE_ERROR.sub(r"\1 in \2", _SIGNATURE.sub("", line))
    return line.strip()


def _after_signature(text: str, whole: bool) -> str:
    """Drops the function that follows a source place: its name, or (``whole``) its signature in full."""
    if not whole:
        return text.partition(" ")[2]
    depth = 0
    for index, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if char == ")" and depth == 0:
            return re.sub(r"^\s*const\b", "", text[index + 1 :]).lstrip()
    return text
