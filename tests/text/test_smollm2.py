import pytest
import real_models
import torch

from rocline import Generator

PROMPT = "The history of the printing press began"


@pytest.fixture(scope="module")
def generator(smollm2):
    with Generator(smollm2) as generator:
        yield generator


def test_128_greedy_tokens_are_those_of_transformers(generator):
    ids = torch.tensor([generator.tokenizer.encode(PROMPT)])
    with torch.inference_mode():
        out = real_models.load_smollm2().generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=128
        )
    expected = out[0, ids.shape[1] :].tolist()
    assert len(expected) == 128
    result = generator.generate(PROMPT, max_new_tokens=128)
    assert list(result.tokens) == expected
    assert result.text == generator.tokenizer.decode(expected)


def test_a_chat_ends_with_the_configs_eos(generator):
    assert generator.config.eos_ids == {2}
    result = generator.chat([{"role": "user", "content": "What is the capital of France?"}])
    assert (result.text, result.finish_reason) == ("The capital of France is Paris.", "eos")
    assert result.tokens[-1] == 2
