"""SampleToken beyond its cases: against transformers, in distribution, and where the device refuses."""

import math

import numpy as np
import op_emulator
import op_harness as harness
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rocline import custom_ops
from rocline.custom_ops import build
from rocline.custom_ops.sample_token import reference
from rocline.custom_ops.schema import Case

SPEC = custom_ops.specs()["SampleToken"]


def sample(logits, seed, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, penalty=1.0, previous=None):
    """The tokens of one run through ONNX Runtime; parameters are one number, or one a row."""
    arrays = {
        "logits": logits,
        "temperature": np.array(temperature, np.float32).reshape(-1),
        "top_k": np.array(top_k, np.int32).reshape(-1),
        "top_p": np.array(top_p, np.float32).reshape(-1),
        "min_p": np.array(min_p, np.float32).reshape(-1),
        "repetition_penalty": np.array(penalty, np.float32).reshape(-1),
        "seed": seed,
    }
    if previous is not None:
        arrays["previous"] = previous
    case = Case("given", {name: array.shape for name, array in arrays.items()})
    session = harness.make_session(harness.make_model(SPEC, case, "float32", arrays))
    return session.run(["tokens"], arrays)[0]


def seeds(count, seed=7):
    """One seed, and the offsets 0, 1, 2, ..."""
    return np.stack([np.full(count, seed), np.arange(count)], axis=1)


def test_philox_gives_the_known_answers():
    # Random123's kat_vectors for philox4x32, 10 rounds.
    ones, pi = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert reference.philox4x32((0, 0), (0,) * 4) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert reference.philox4x32((ones, ones), (ones,) * 4) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert reference.philox4x32((0xA4093822, 0x299F31D0), pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 30.0])
def test_weights_are_probabilities(temperature):
    logits = np.linspace(-80, 0, 20001, dtype=np.float32)
    rank = reference.ranks(logits)
    weights = reference.weights(rank, temperature)
    exact = np.exp(logits.astype(np.float64) / np.float32(temperature)) * reference.ONE
    # The distance in logits is a float32, whose rounding the exponential makes larger.
    assert np.abs(weights - exact).max() / reference.ONE < 1e-7
    shown = exact > 2**24
    assert np.abs(weights[shown] / exact[shown] - 1).max() < 3e-6
    assert (np.diff(weights) >= 0).all() and (np.diff(rank) < 0).all()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [(1.0, 40, 1.0, 0.0), (0.7, 0, 0.9, 0.0), (1.5, 0, 1.0, 0.05), (0.8, 100, 0.95, 0.02), (2.0, 3, 0.3, 0.9)],
)
def test_keeps_what_transformers_keeps(temperature, top_k, top_p, min_p):
    logits = np.random.default_rng(3).standard_normal((6, 3001), dtype=np.float32) * 4
    scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits))
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    scores = TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
    scores = MinPLogitsWarper(min_p)(None, scores)
    probabilities = torch.softmax(scores.double(), -1).numpy()
    for row in range(len(logits)):
        settings = reference.Row(temperature, top_k, top_p, min_p, 1.0, 0, 0)
        ids, weights = reference.kept_tokens(logits[row], settings)
        assert set(ids) == set(np.flatnonzero(probabilities[row] > 0))
        np.testing.assert_allclose(weights / weights.sum(), probabilities[row, ids], rtol=3e-6)


def test_penalises_as_transformers_does():
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((5, 211), dtype=np.float32)
    previous = rng.integers(0, 211, (5, 60))
    wanted = RepetitionPenaltyLogitsProcessor(1.3)(torch.from_numpy(previous), torch.from_numpy(logits.copy())).numpy()
    got = np.stack([reference.penalise(logits[row], previous[row], 1.3) for row in range(5)])
    np.testing.assert_allclose(got, wanted, rtol=1e-7)
    greedy = sample(logits, seeds(5), temperature=0, penalty=1.3, previous=previous)
    np.testing.assert_array_equal(greedy, wanted.argmax(axis=1))


@pytest.mark.parametrize(
    ("parameters", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 2.0}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 3}, [0, 2, 4]),
        ({"top_p": 0.7}, [0, 2, 4]),
        ({"top_k": 4, "top_p": 0.6, "min_p": 0.5}, [0, 4]),
    ],
)
def test_draws_follow_the_distribution(parameters, kept):
    logits = np.array([1.0, -1.0, 0.25, 0.0, 1.25, -2.0], np.float32)
    draws = 20000
    tokens = sample(np.tile(logits, (draws, 1)), seeds(draws), **parameters)
    counts = np.bincount(tokens, minlength=6)
    weights = np.exp(logits.astype(np.float64) / parameters.get("temperature", 1.0))
    weights[[i for i in range(6) if i not in kept]] = 0
    expected = draws * weights / weights.sum()
    assert counts[expected == 0].sum() == 0
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    # Chi-square with n degrees of freedom stays below n + 4 sqrt(2 n) + 4 in all but some 1 of 10,000 experiments.
    freedom = len(kept) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom) + 4, counts


def test_ties_at_the_cut_go_to_the_lower_ids():
    logits = np.tile(np.array([0, 5, 3, 3, 3, 3], np.float32), (2000, 1))
    assert set(sample(logits, seeds(2000), top_k=3)) == {1, 2, 3}
    assert set(sample(logits, seeds(2000), top_k=1, temperature=1e4)) == {1}
    # exp(-2) of the best each: 0.85 of the whole is the best and three of the four.
    assert set(sample(logits, seeds(2000), top_p=0.85)) == {1, 2, 3, 4}


def test_a_draw_depends_on_its_own_seed_alone():
    rng = np.random.default_rng(1)
    logits, seed = rng.standard_normal((64, 500), dtype=np.float32), rng.integers(-(2**63), 2**63 - 1, (64, 2))
    tokens = sample(logits, seed)
    order = rng.permutation(64)
    np.testing.assert_array_equal(sample(logits[order], seed[order]), tokens[order])
    assert (sample(logits, seed + np.array([0, 1])) != tokens).any()
    assert (sample(logits, seed + np.array([1, 0])) != tokens).any()


def test_the_device_says_why_a_row_has_no_token(tmp_path, monkeypatch):
    # A GPU's kernels cannot raise: the same rows that are errors on the CPU have a negative token.
    monkeypatch.setattr(build, "op_folders", lambda: [build.FOLDER / SPEC.folder])
    monkeypatch.setenv("ROCLINE_OPS_LIBRARY", str(op_emulator.build_library(tmp_path, wave=64)))
    logits = np.zeros((7, 4100), np.float32)
    logits[4, 4099], logits[5] = np.nan, -np.inf
    tokens = sample(
        logits,
        seeds(7),
        temperature=[-1, 1, 1, 1, 1, 1, 1],
        top_p=[1, 2, 1, 1, 1, 1, 0],
        min_p=[0, 0, np.nan, 0, 0, 0, 0],
        penalty=[1, 1, 1, 0, 1, 1, 1],
    )
    np.testing.assert_array_equal(tokens, [-1, -2, -3, -4, -5, -6, 0])
