"""Runs tiny exported models on an NVIDIA GPU through ONNX Runtime's CUDA provider, beside the same folders on the CPU.

    python tests/gpu/run_models.py export OUT          where PyTorch and Optimum are: every kind in every dtype
    python tests/gpu/run_models.py run OUT             where the GPU is

The CPU runs the same weights in float32 (float16 it computes wide, bfloat16 is widened in memory), and parity with
PyTorch was measured when the folder was exported: what differs here is what the GPU's kernels round. Decoders with a
static cache get a ragged prefill, a second chunk and three decode steps, each from the cache that the one before left.
These are results of an NVIDIA card.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Of an output's largest value; a model of two layers rounds a few dozen times on the way.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 6e-2}
LENGTHS = (11, 4, 7)
CAPACITY = 160


def export(out, kinds, dtypes):
    import tiny_models

    for kind in kinds or dict.fromkeys((*tiny_models.DECODERS, *tiny_models.KINDS)):
        with tempfile.TemporaryDirectory() as source:
            task = tiny_models.save(kind, Path(source) / kind)
            for dtype in dtypes:
                print(f"{kind:12} {dtype}  {export_one(Path(source) / kind, out / f'{kind}-{dtype}', task, dtype)}")


def export_one(source, out, task, dtype):
    from rocline.errors import RoclineError
    from rocline.export import export_model

    try:
        manifest = export_model(source, out, task=task, dtype=dtype, target="cuda", force=True)
    except RoclineError as error:
        return f"REFUSED: {error}"
    return f"cache {manifest.cache}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("export", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", action="append", help="for export; all if not given")
    parser.add_argument("--dtype", action="append", choices=tuple(TOLERANCE))
    arguments = parser.parse_args()
    if arguments.what == "export":
        export(arguments.folder, arguments.kind, arguments.dtype or list(TOLERANCE))
        return 0
    return run(arguments.folder)


def run(folder):
    import run_ops
    import torch

    with tempfile.TemporaryDirectory() as cubins:
        run_ops.build_cubins(Path(cubins), "sm_{}{}".format(*torch.cuda.get_device_capability()))
        os.environ["ROCLINE_CODE_OBJECTS"] = cubins
        print(f"{torch.cuda.get_device_name()}, an NVIDIA card")
        return compare_all(folder)


def compare_all(folder):
    failed = 0
    models = sorted(folder.glob("*/rocline.json"))
    for manifest in models:
        for path in sorted(manifest.parent.glob("*.onnx")):
            if "merged" in path.name:  # its branches are decided on the host; the parts that compute are in the encoder
                continue
            name = f"{manifest.parent.name}/{path.name}"
            try:
                failed += not compare(name, path, json.loads(manifest.read_text()))
            except Exception as error:
                failed += 1
                print(f"FAILED {name}: {type(error).__name__}: {error}")
    print(f"{len(models)} models, {failed} failed")
    return 1 if failed or not models else 0


def compare(name, path, manifest):
    """Runs one file on both providers; returns whether all outputs are close."""
    from rocline import Session

    tolerance = TOLERANCE[manifest["dtype"]]
    worst, runs = (0.0, ""), 0
    with Session(path, ["cuda"], strict=True) as gpu, Session(path, ["cpu"]) as cpu:
        decoder = manifest["cache"] == "static"
        caches = ({}, {})
        for feeds in static_steps(gpu) if decoder else whole(gpu):
            got, expected = (
                session.run({**fit(feeds, session), **cache}) for session, cache in zip((gpu, cpu), caches, strict=True)
            )
            runs += 1
            for output, want in expected.items():
                error, where = difference(np.asarray(got[output], np.float32), np.asarray(want, np.float32)), output
                worst = max(worst, (error, where))
            if decoder:
                caches = tuple(
                    {key.replace("present.", "past_key_values."): value for key, value in outputs.items()
                     if key.startswith("present.")}
                    for outputs in (got, expected)
                )  # fmt: skip
        nodes = {provider: sum(operators.values()) for provider, operators in gpu.report.placement.items()}
    good = runs > 0 and worst[0] <= tolerance
    print(f"{'ok    ' if good else 'FAILED'} {name}: {runs} runs, worst {worst[0]:.1e} of the largest in {worst[1]} "
          f"(bound {tolerance}); nodes {nodes}")  # fmt: skip
    return good


def difference(got, want):
    """The largest difference, of the largest value; not a number where one side alone is none."""
    if got.shape != want.shape or not np.array_equal(np.isnan(got), np.isnan(want)):
        return np.inf
    if not want.size:
        return 0.0
    return float(np.nanmax(np.abs(got - want)) / max(np.nanmax(np.abs(want)), 1e-6))


def fit(feeds, session):
    """The feeds in the dtypes that a session takes: a widened model takes float32."""
    from rocline.runtime.inputs import numpy_dtype

    wanted = {spec.name: numpy_dtype(spec.dtype) for spec in session.inputs}
    return {name: value.astype(wanted[name]) for name, value in feeds.items() if name in wanted}


def static_steps(session):
    """Prefill of rows of different lengths, a second chunk of three, then three decode steps; caches come after it."""
    random = np.random.default_rng(0)
    rows = len(LENGTHS)
    empty = {
        spec.name: np.zeros((rows, spec.shape[1], CAPACITY, spec.shape[3]), np.float32)
        for spec in session.inputs
        if spec.name.startswith("past_key_values.")
    }
    ends = np.zeros(rows, np.int64)
    for counts in (LENGTHS, (3, 3, 3), *itertools.repeat((1, 1, 1), 3)):
        width = max(counts)
        positions = np.full((rows, width), -1)
        for row, count in enumerate(counts):
            positions[row, :count] = np.arange(ends[row], ends[row] + count)
        ends += counts
        yield {"input_ids": random.integers(3, 200, (rows, width)), "position_ids": positions, **empty}
        empty = {}


def whole(session):
    """One batch for any other model, by the names and shapes of its inputs."""
    random = np.random.default_rng(0)
    rows, width = len(LENGTHS), max(LENGTHS)
    mask = (np.arange(width) < np.array(LENGTHS)[:, None]).astype(np.int64)
    sizes, feeds = {}, {}
    for spec in session.inputs:
        shape = [
            size if isinstance(size, int) else 0 if "past" in size else rows if "batch" in size
            else sizes.setdefault(size, width)
            for size in spec.shape
        ]  # fmt: skip
        if spec.name == "input_ids":
            feeds[spec.name] = random.integers(3, 200, shape)
        elif "mask" in spec.name:
            feeds[spec.name] = mask
        elif spec.name == "position_ids":
            feeds[spec.name] = np.maximum(mask.cumsum(axis=1) - 1, 0)
        elif spec.name == "token_type_ids":
            feeds[spec.name] = np.zeros(shape)
        elif spec.name == "pixel_values":
            feeds[spec.name] = random.standard_normal((rows, 3, 32, 32) if isinstance(spec.shape[2], str) else shape)
        elif spec.name == "input_values":
            feeds[spec.name] = random.standard_normal((rows, 4000))
        else:
            feeds[spec.name] = random.standard_normal(shape)
    yield feeds


if __name__ == "__main__":
    sys.exit(main())
