"""How long `rocline --help` and `import rocline` take, as whole processes and over bare Python.

    python benchmarks/startup.py [--rounds N]

The bounds: `rocline --help` under 0.3 s, `import rocline` under 0.15 s. Where other processes share the machine, wall
time says little: processor time is printed beside it.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "bare python": [sys.executable, "-c", "pass"],
    "import rocline": [sys.executable, "-c", "import rocline"],
    "rocline --help": [str(Path(sys.executable).parent / "rocline"), "--help"],
    "rocline run --help": [str(Path(sys.executable).parent / "rocline"), "run", "--help"],
    "rocline doctor": [str(Path(sys.executable).parent / "rocline"), "doctor"],
}


def seconds(command: list[str]) -> tuple[float, float]:
    """Returns wall time and processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for index in range(rounds + 1):
        for name, command in COMMANDS.items():
            taken = seconds(command)
            # The first round fills the file cache.
            if index:
                times[name].append(taken)
    print(f"{'median of seconds':20} {'wall':>7} {'over bare':>10} {'processor':>10}")
    bare = statistics.median(wall for wall, _ in times["bare python"])
    for name, taken in times.items():
        wall, processor = (statistics.median(values) for values in zip(*taken, strict=True))
        print(f"{name:20} {wall:7.3f} {wall - bare:10.3f} {processor:10.3f}")


if __name__ == "__main__":
    main()
