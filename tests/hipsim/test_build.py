"""Building the simulated device: several commands may start at once, and any of them may be killed."""

import signal
import subprocess
import sys

import pytest
from simulated_device import FOLDER

# Wants a folder of two files; says "making" when it begins to make it, and goes on when it is told to.
MAKER = f"""
import pathlib, sys
sys.path.insert(0, {str(FOLDER)!r})
import build
build.CACHE = pathlib.Path(sys.argv[1])
def make(folder):
    folder.mkdir()
    (folder / "one").write_text("1")
    print("making", flush=True)
    sys.stdin.readline()
    (folder / "two").write_text("2")
print("wanted", flush=True)
made = build.made(build.CACHE / "kernels-1", make)
print(sorted(file.name for file in made.iterdir()), flush=True)
"""
WHOLE = "['one', 'two']\n"


@pytest.fixture
def start(tmp_path):
    """Starts a process that wants what `MAKER` makes."""
    started = []

    def start():
        command = [sys.executable, "-c", MAKER, tmp_path / "cache"]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "wanted\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_one_makes_it_for_two_that_start_at_once(start, tmp_path):
    first = start()
    assert first.stdout.readline() == "making\n"
    second = start()
    assert first.communicate("go on\n")[0] == WHOLE
    assert second.communicate("")[0] == WHOLE
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == ["kernels-1"]


def test_what_was_killed_in_the_middle_is_made_again(start):
    first = start()
    assert first.stdout.readline() == "making\n"
    second = start()
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert second.communicate("go on\n")[0] == "making\n" + WHOLE
