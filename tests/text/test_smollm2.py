import itertools
from pathlib import Path

import numpy as np
import pytest
import real_models
import torch

from rocline import Generator

PROMPT = "The history of the printing press began"
TEXT = (Path(__file__).parents[2] / "LICENSE").read_text()


@pytest.fixture(scope="module")
def reference():
    return real_models.load_smollm2()


@pytest.fixture(scope="module")
def generator(smollm2):
    with Generator(smollm2) as generator:
        yield generator


@pytest.fixture(scope="module")
def greedy(generator, reference):
    """128 tokens that transformers continues the prompt with."""
    ids = torch.tensor([generator.tokenizer.encode(PROMPT)])
    with torch.inference_mode():
        out = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=128)
    return out[0, ids.shape[1] :].tolist()


def surprise(logits, token):
    """How unlikely ``token`` is by ``logits`` [vocabulary], in nats."""
    logits = logits.astype(np.float64)
    return np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[token]


def test_128_greedy_tokens_are_those_of_transformers(generator, greedy):
    result = generator.generate(PROMPT, max_new_tokens=128)
    assert generator._decoder.interface.static
    assert len(greedy) == 128
    assert list(result.tokens) == greedy
    assert result.text == generator.tokenizer.decode(greedy)


def test_the_perplexity_of_a_text_is_pytorchs(generator, reference):
    ids = generator.tokenizer.encode(TEXT)[:200]
    with torch.inference_mode():
        expected = reference(torch.tensor([ids]), labels=torch.tensor([ids])).loss.exp().item()
    text = generator._decoder.start(len(ids))
    surprises = [surprise(text.logits([token]), following) for token, following in itertools.pairwise(ids)]
    assert np.exp(np.mean(surprises)) == pytest.approx(expected, rel=1e-3)


def test_a_chat_ends_with_the_configs_eos(generator):
    assert generator.config.eos_ids == {2}
    result = generator.chat([{"role": "user", "content": "What is the capital of France?"}])
    assert (result.text, result.finish_reason) == ("The capital of France is Paris.", "eos")
    assert result.tokens[-1] == 2


def test_a_second_turn_computes_only_what_is_new(generator):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    with generator.prefix_cache() as cache:
        answer = generator.chat(messages, cache=cache)
        messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "And of Italy?"}]
        again = generator.chat(messages, cache=cache)
    # The whole first turn is kept, but for the eos token, which was chosen and never computed with.
    assert again.reused_tokens == answer.prompt_tokens + len(answer.tokens) - 1
    assert again.text == generator.chat(messages).text
