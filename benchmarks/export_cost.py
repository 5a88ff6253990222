"""What an export costs: the whole `rocline export` process against the whole `optimum-cli export onnx` process.

    python benchmarks/export_cost.py                     MiniLM and SmolLM2-135M, 3 rounds each
    python benchmarks/export_cost.py minilm --rounds 5

Both start from the same Hugging Face folder (SmolLM2's GGUF weights are dequantised into one first) and run by turns,
so that a slow moment of the machine hits both. Optimum's validation is on; rocline's comparison with PyTorch takes its
place. Medians of wall time, of processor time (which other work on the machine disturbs less), and of peak memory as
the kernel counts it for the process (ru_maxrss). Exits 1 where rocline takes more than 1.25 times the wall time or
memory.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from rocline.export import recipes

LIMIT = 1.25
MODELS = {"minilm": "feature-extraction", "smollm2": "text-generation-with-past"}
DEQUANTISE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, file, out = sys.argv[1:]
AutoModelForCausalLM.from_pretrained(folder, gguf_file=file).save_pretrained(out)
AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(out)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[[], *MODELS], default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(
        f"{machine()}\ntorch {version('torch')}, optimum-onnx {version('optimum-onnx')}, rocline {version('rocline')}"
    )
    print(f"{'':22}{'wall':>9}{'range':>16}{'processor':>11}{'peak':>12}")
    within = True
    for model in arguments.models:
        with tempfile.TemporaryDirectory(prefix="rocline-export-cost-") as scratch:
            within &= compare(model, Path(scratch), arguments.rounds)
    sys.exit(not within)


def compare(model, scratch, rounds):
    folder = source(model, scratch)
    programs, out = Path(sys.executable).parent, scratch / "out"
    task = MODELS[model]
    options = ["--task", task, "--library", "transformers"]
    commands = {
        "optimum": [programs / "optimum-cli", "export", "onnx", "--model", folder, *options, out],
        "rocline": [programs / "rocline", "export", folder, out, "--task", task.removesuffix("-with-past")],
    }
    costs = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            costs[name].append(cost(command, scratch / "log"))
            shutil.rmtree(out)
    medians = {name: [statistics.median(column) for column in zip(*costs[name], strict=True)] for name in commands}
    for name, (wall, processor, peak) in medians.items():
        walls = [entry[0] for entry in costs[name]]
        spread = f"{min(walls):.1f}-{max(walls):.1f} s"
        print(f"{model:10}{name:12}{wall:7.1f} s{spread:>16}{processor:9.1f} s{peak:9.0f} MB")
    wall, processor, peak = (ours / theirs for ours, theirs in zip(medians["rocline"], medians["optimum"], strict=True))
    print(f"{model:10}{'ratio':12}{wall:7.2f}  {'':16}{processor:9.2f}  {peak:9.2f}   (at most {LIMIT})", flush=True)
    return max(wall, peak) <= LIMIT


def source(model, scratch):
    """Returns a Hugging Face folder with the recipe's weights from its package."""
    (path,) = recipes.load(model).locate(scratch).paths
    if path.suffix != ".gguf":
        return path
    folder = scratch / "source"
    subprocess.run([sys.executable, "-c", DEQUANTISE, path.parent, path.name, folder], check=True, capture_output=True)
    return folder


def cost(command, log):
    """Runs a command; returns its wall and processor time in seconds and its peak memory in megabytes."""
    with log.open("w") as file:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit status {process.returncode}\n{log.read_text()[-2000:]}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def machine():
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {platform.system()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
