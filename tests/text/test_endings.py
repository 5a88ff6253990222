"""How commands end when they are interrupted: in child processes, as a user's shell sees it."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOON = 2.0
"""Seconds of its own processor time within which an interrupted command must be gone, or back at its prompt."""


def start(*arguments, before="", **streams):
    """Starts a rocline command; ``before`` is Python that its process runs first."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    code = f"{before}\nfrom rocline.cli import main\nmain()"
    command = [sys.executable, "-c", code, *map(str, arguments), "--provider", "cpu", "--threads", "1"]
    return subprocess.Popen(command, start_new_session=True, **options)


def ending(child, *, status):
    """Waits for the end and checks that it was quick, quiet and left nothing; returns stderr."""
    begin = cpu_seconds(child)
    try:
        wait_until(lambda: process_status(child)[0] == "Z")
        took = cpu_seconds(child) - begin
        child.wait()
        error = child.stderr.read().decode()
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream:
                stream.close()
    assert child.returncode == status, error
    assert took < SOON
    assert "Traceback" not in error
    assert "Exception" not in error
    assert group_members(child.pid) == []
    return error


def group_members(group):
    """Ids of the processes in a process group, from /proc."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            members.append(int(stat.parent.name))
    return members


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def process_status(child):
    """The fields of /proc/PID/stat that follow the name: state first."""
    return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(child):
    fields = process_status(child)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def terminal():
    """A pseudo terminal: the descriptors of its two ends."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def read_until(descriptor, wanted, seconds=60):
    text = b""
    deadline = time.monotonic() + seconds
    while wanted not in text:
        ready, _, _ = select.select([descriptor], [], [], deadline - time.monotonic())
        assert ready, f"no {wanted!r} in {text!r}"
        text += os.read(descriptor, 4096)
    return text


def test_ctrl_c_ends_generate(endless):
    child = start("generate", endless, "--prompt", "Hi", "--max-new-tokens", 100_000)
    assert child.stdout.read(20)
    child.send_signal(signal.SIGINT)
    ending(child, status=130)


def test_ctrl_c_ends_a_piped_chat(endless):
    child = start("chat", endless, "--max-new-tokens", 100_000, stdin=subprocess.PIPE)
    child.stdin.write(b"Hi\n")
    child.stdin.flush()
    assert child.stdout.read(20)
    child.send_signal(signal.SIGINT)
    ending(child, status=130)


# Creating a session is one long call into C, after which alone Python's own handler would run.
NEVER_LOADS = """
import ctypes, onnxruntime
def load(*_, **__):
    print("loading", flush=True)
    while True:
        ctypes.CDLL(None).sleep(1000)
onnxruntime.InferenceSession = load
"""


def test_ctrl_c_ends_the_loading_of_a_model(endless):
    child = start("generate", endless, "--prompt", "Hi", before=NEVER_LOADS)
    assert child.stdout.readline() == b"loading\n"
    child.send_signal(signal.SIGINT)
    ending(child, status=-signal.SIGINT)


TELLS_ITS_CHUNKS = """
from rocline.runtime.static_cache import StaticDecoding
extend = StaticDecoding.extend
def tell(self, tokens):
    print("chunk", flush=True)
    extend(self, tokens)
StaticDecoding.extend = tell
"""


def test_ctrl_c_ends_a_long_prefill(endless):
    child = start("generate", endless, "--prompt", "-", before=TELLS_ITS_CHUNKS, stdin=subprocess.PIPE)
    child.stdin.write(b"word " * 20_000)
    child.stdin.close()
    for _ in range(3):
        assert child.stdout.readline() == b"chunk\n"
    child.send_signal(signal.SIGINT)
    ending(child, status=130)


@pytest.mark.parametrize("command", ["generate", "embed"])
def test_a_reader_that_closes_the_pipe_ends_the_command(command, endless, minilm):
    if command == "generate":
        child = start("generate", endless, "--prompt", "Hi", "--max-new-tokens", 100_000)
    else:
        child = start("embed", minilm, *(word for i in range(400) for word in ("--text", f"text {i}")))
    assert child.stdout.read(1)
    child.stdout.close()
    child.stdout = None
    ending(child, status=141)


def test_leaving_the_iterator_early_ends_the_process(endless):
    code = (
        "import rocline, sys, threading\n"
        f"generator = rocline.Generator({str(endless)!r}, ['cpu'])\n"
        "for piece in generator.stream('Hi', max_new_tokens=100_000): break\n"
        "stream = generator.stream('Hi', max_new_tokens=100_000); next(stream)\n"
        "generator.close(); generator.close()\n"
        "assert threading.active_count() == 1\n"
        "print('left', flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert child.stdout.readline() == b"left\n"
    assert ending(child, status=0) == ""


def test_in_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_ends(endless, terminal):
    ours, theirs = terminal
    child = start("chat", endless, "--max-new-tokens", 100_000, stdin=theirs, stdout=theirs)
    read_until(ours, b"> ")
    os.write(ours, b"Hi\n")
    read_until(ours, b"Hi\r\n")
    assert os.read(ours, 1)
    child.send_signal(signal.SIGINT)
    begin = cpu_seconds(child)
    read_until(ours, b"> ")
    assert cpu_seconds(child) - begin < SOON
    os.write(ours, b"/reset\n")
    read_until(ours, b"> ")
    os.write(ours, b"\x04")
    ending(child, status=0)


def test_in_a_terminal_ctrl_c_at_the_prompt_ends(endless, terminal):
    ours, theirs = terminal
    child = start("chat", endless, stdin=theirs, stdout=theirs)
    read_until(ours, b"> ")
    # A signal between the prompt and the wait for a key would be seen at the next key only.
    wait_until(lambda: process_status(child)[0] == "S")
    child.send_signal(signal.SIGINT)
    ending(child, status=130)
