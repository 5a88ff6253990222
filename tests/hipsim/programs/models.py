"""Runs exported models on the ROCm and the CPU provider and prints, as JSON, how far they are apart and what ran where.

Arguments: model folders.
"""

import json
import logging
import sys
from pathlib import Path

import numpy as np

import rocline

BATCH, TOKENS, CAPACITY = 2, 7, 12
logging.getLogger("rocline").setLevel(logging.ERROR)


def make_inputs(session: rocline.Session) -> dict[str, np.ndarray]:
    """Seeded inputs of small sizes; a row's positions are 0, 1, ..., and an encoder's second row ends in padding."""
    random = np.random.default_rng(0)
    static = any("capacity" in map(str, spec.shape) for spec in session.inputs)
    arrays = {}
    for spec in session.inputs:
        sizes = {"batch_size": BATCH, "sequence_length": TOKENS, "capacity": CAPACITY, "past_sequence_length": 3}
        shape = [size if isinstance(size, int) else sizes.get(size, TOKENS) for size in spec.shape]
        if spec.name.startswith("past"):
            # A static cache is empty at first; a growing one holds the tokens before.
            empty = np.zeros(shape) if static else random.standard_normal(shape)
            arrays[spec.name] = empty.astype(spec.dtype)
        elif spec.name == "position_ids":
            start = 0 if static else 3
            arrays[spec.name] = np.tile(np.arange(start, start + TOKENS), (BATCH, 1))
        elif spec.name == "attention_mask":
            shape[-1] = TOKENS + (3 if any(name.name.startswith("past") for name in session.inputs) else 0)
            arrays[spec.name] = np.ones(shape, spec.dtype)
            if shape[-1] == TOKENS:
                arrays[spec.name][1, TOKENS - 2 :] = 0
        elif spec.name == "token_type_ids":
            arrays[spec.name] = np.zeros(shape, spec.dtype)
        else:
            arrays[spec.name] = random.integers(1, 40, shape).astype(spec.dtype)
    return arrays


def run(folder: str, providers: list[str]) -> tuple[dict[str, np.ndarray], list[str], dict]:
    with rocline.Session(folder, providers) as session:
        return session.run(make_inputs(session)), list(session.report.active), session.report.placement


results = {}
for folder in sys.argv[1:]:
    wanted, _, _ = run(folder, ["cpu"])
    try:
        got, active, placement = run(folder, ["rocm", "cpu"])
    except rocline.RoclineError as error:
        results[Path(folder).name] = str(error)
        continue
    worst = 0.0
    for name, array in wanted.items():
        reference = array.astype(np.float64)
        difference = np.abs(got[name].astype(np.float64) - reference).max(initial=0)
        worst = max(worst, float(difference / max(1, np.abs(reference).max(initial=0))))
    results[Path(folder).name] = {"worst": worst, "active": active, "placement": placement}
print(json.dumps(results))
