"""Decoder-only architectures end to end: exported with a static cache, run on the CPU, beside PyTorch."""

import pytest
import static_decoding
import tiny_models
from transformers import AutoModelForCausalLM

from rocline.export import export_model, random_models
from rocline.export.quiet import quiet

# Absolute; the largest logits are near 4.
TOLERANCES = {"fp32": 1e-5, "fp16": 2e-2, "bf16": 1e-1}


def cases():
    for kind in tiny_models.DECODERS:
        yield pytest.param(kind, "fp32", id=f"{kind}-fp32")
        # Sixteen bits on one of each rotation and window; on the others only where there is time.
        marks = () if kind in ("mistral", "gpt2", "cohere") else pytest.mark.slow
        yield pytest.param(kind, "fp16", id=f"{kind}-fp16", marks=marks)
        yield pytest.param(kind, "bf16", id=f"{kind}-bf16", marks=pytest.mark.slow)


@pytest.mark.parametrize(("kind", "dtype"), list(cases()))
def test_a_static_export_gives_pytorchs_numbers(tmp_path, kind, dtype):
    tiny_models.save(kind, tmp_path / "source")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "source").eval()
    manifest = export_model(tmp_path / "source", tmp_path / "out", dtype=dtype)
    assert manifest.cache == "static"
    found = static_decoding.session_deviation(model, tmp_path / "out")
    assert sorted(found) == ["chunked prefill", "decode after chunked prefill", "decode after prefill", "prefill"]
    assert max(found.values()) <= TOLERANCES[dtype], found


@pytest.mark.parametrize(
    ("kind", "architecture", "reason"),
    [
        ("falcon", "FalconForCausalLM", "makes its own attention mask, not shown to be causal"),
        ("gptj", "GPTJForCausalLM", "an attention works on the mask itself"),
        ("gpt_oss", "GptOssForCausalLM", "passes 's_aux' to its attention"),
    ],
)
def test_a_refused_architecture_keeps_its_growing_cache_and_its_numbers(tmp_path, kind, architecture, reason):
    config = {"model_type": kind, "architectures": [architecture], **tiny_models.GROUPED}
    if kind == "gptj":
        config["rotary_dim"] = 4
    if kind == "gpt_oss":
        config |= {"head_dim": 8, "num_local_experts": 4}
    random_models.build(config, 0, tmp_path / "source")
    manifest = export_model(tmp_path / "source", tmp_path / "out", parity_bound=1e-4)
    assert manifest.cache == "growing"
    assert any(note.startswith("cache 'growing' instead of 'static'") and reason in note for note in manifest.notes)
    assert max(entry.max_abs for entry in manifest.parity) <= 1e-4
