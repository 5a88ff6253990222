import numpy as np
import pytest
import torch
from transformers.generation import logits_process

from rocline.errors import InputError
from rocline.runtime.sampling import Sampler, Sampling, candidates, penalize


def random_logits(seed, size=1000):
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def transformers_probabilities(logits, *warpers):
    scores = torch.from_numpy(logits)[None]
    for warper in warpers:
        scores = warper(None, scores)
    return torch.softmax(scores.double(), -1)[0].numpy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("options", "warpers"),
    [
        ({"temperature": 1.0}, []),
        ({"temperature": 0.7}, [logits_process.TemperatureLogitsWarper(0.7)]),
        ({"temperature": 1.0, "top_k": 19}, [logits_process.TopKLogitsWarper(19)]),
        ({"temperature": 1.0, "top_p": 0.83}, [logits_process.TopPLogitsWarper(0.83)]),
        ({"temperature": 1.0, "top_p": 1e-6}, [logits_process.TopPLogitsWarper(1e-6)]),
        ({"temperature": 1.0, "min_p": 0.11}, [logits_process.MinPLogitsWarper(0.11)]),
        (
            {"temperature": 1.6, "top_k": 111, "top_p": 0.9, "min_p": 0.02},
            [
                logits_process.TemperatureLogitsWarper(1.6),
                logits_process.TopKLogitsWarper(111),
                logits_process.TopPLogitsWarper(0.9),
                logits_process.MinPLogitsWarper(0.02),
            ],
        ),
    ],
)
def test_probabilities_are_those_of_transformers(seed, options, warpers):
    logits = random_logits(seed)
    tokens, probabilities = candidates(logits, Sampling(**options))
    ours = np.zeros(len(logits))
    ours[tokens] = probabilities
    np.testing.assert_allclose(ours, transformers_probabilities(logits, *warpers), atol=1e-6)


def test_repetition_penalty_is_that_of_transformers():
    logits = random_logits(5)
    seen = {1, 7, 500, 999}
    processor = logits_process.RepetitionPenaltyLogitsProcessor(1.3)
    expected = processor(torch.tensor([sorted(seen)]), torch.from_numpy(logits.copy())[None])[0].numpy()
    np.testing.assert_array_equal(penalize(logits, seen, 1.3), expected)


def test_penalty_counts_prompt_and_answer():
    logits = np.array([5.0, 4.9, 4.8, 0.0], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=2.0), prompt=[0])
    assert [sampler.choose(logits) for _ in range(3)] == [1, 2, 0]


def test_greedy_takes_the_first_of_equal_logits():
    assert Sampler(Sampling(), []).choose(np.array([1.0, 3.0, 3.0], np.float32)) == 1


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    logits = [random_logits(seed) for seed in range(40)]

    def draw(seed):
        sampler = Sampler(Sampling(temperature=2.0, seed=seed), [])
        return [sampler.choose(row) for row in logits]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(None) != draw(None)


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=11), [])
    counts = np.bincount([sampler.choose(logits) for _ in range(4000)], minlength=4)
    # Four standard deviations of a binomial count.
    expected = 4000 * np.exp(logits)
    assert np.all(np.abs(counts - expected) < 4 * np.sqrt(expected))


def test_a_tiny_temperature_is_greedy_and_does_not_overflow():
    logits = random_logits(2) * 1e4
    for temperature in (1e-30, 1e-320):
        assert Sampler(Sampling(temperature=temperature, seed=0), []).choose(logits) == logits.argmax()


def test_numpys_numbers_are_numbers():
    logits = random_logits(2)
    ours = Sampling(temperature=0.5, top_k=4, seed=1)
    theirs = Sampling(temperature=np.float32(0.5), top_k=np.int64(4), seed=np.int64(1))
    assert Sampler(theirs, []).choose(logits) == Sampler(ours, []).choose(logits)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": None},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_k": float("inf")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": -1},
        {"repetition_penalty": 0},
        {"seed": -1},
        {"seed": 2.5},
        {"seed": True},
    ],
)
def test_options_out_of_range_are_refused_by_name(options):
    (name,) = options
    with pytest.raises(InputError, match=f"^{name} is .*, expected"):
        Sampling(**options)
