"""Tiny random models by architecture, for tests: `save("bert", folder)` writes a Hugging Face folder."""

from pathlib import Path
from typing import Any

from rocline.export import random_models, recipes

# The architectures that a recipe holds already.
RECIPES = {
    "bert": "tiny-feature-extraction",
    "bert-tokens": "tiny-token-classification",
    "bert-spans": "tiny-question-answering",
    "distilbert": "tiny-text-classification",
    "roberta": "tiny-fill-mask",
    "llama": "tiny-text-generation",
    "t5": "tiny-text2text-generation",
    "vit": "tiny-image-classification",
    "yolos": "tiny-object-detection",
    "whisper": "tiny-automatic-speech-recognition",
}

_DECODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
GROUPED = {**_DECODER, "num_key_value_heads": 2}
"""Sizes that most decoder-only architectures name alike."""

_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": (
        "text-generation",
        {"architectures": ["Qwen2ForCausalLM"], **_DECODER, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "mistral": (
        "text-generation",
        {"architectures": ["MistralForCausalLM"], **_DECODER, "num_key_value_heads": 2, "sliding_window": 6},
    ),
    "gpt2": (
        "text-generation",
        {"architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    ),
    "phi": (
        "text-generation",
        {"architectures": ["PhiForCausalLM"], **_DECODER, "partial_rotary_factor": 0.5},
    ),
    "gemma": (
        "text-generation",
        {"architectures": ["GemmaForCausalLM"], **_DECODER, "num_key_value_heads": 1, "head_dim": 16},
    ),
    "wav2vec2": (
        "automatic-speech-recognition",
        {
            "architectures": ["Wav2Vec2ForCTC"],
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "conv_dim": [16, 16, 16],
            "conv_kernel": [10, 8, 4],
            "conv_stride": [8, 4, 4],
            "num_feat_extract_layers": 3,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
        },
    ),
}

_WIDE_HEADS = {**GROUPED, "head_dim": 16}
_DECODER_CONFIGS: dict[str, dict[str, Any]] = {
    "llama3": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **GROUPED,
        # Waves of each of the three kinds that the scaling tells apart.
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], **_WIDE_HEADS},
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        **_WIDE_HEADS,
        "sliding_window": 6,
        "query_pre_attn_scalar": 24,
        # Caps that bend the scores and logits of so small a model.
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 1.5,
    },
    "phi3": {"architectures": ["Phi3ForCausalLM"], **GROUPED, "sliding_window": 6},
    "granite": {
        "architectures": ["GraniteForCausalLM"],
        **GROUPED,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "olmo2": {"architectures": ["Olmo2ForCausalLM"], **GROUPED},
    "smollm3": {"architectures": ["SmolLM3ForCausalLM"], **GROUPED, "no_rope_layers": [1, 0]},
    "opt": {
        "architectures": ["OPTForCausalLM"],
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "max_position_embeddings": 256,
    },
    "cohere": {"architectures": ["CohereForCausalLM"], **GROUPED, "logit_scale": 0.25},
    "gpt_neox": {"architectures": ["GPTNeoXForCausalLM"], **_DECODER, "rotary_pct": 0.5},
}

KINDS = (*RECIPES, *_CONFIGS)
DECODERS = ("llama", "qwen2", "mistral", "gpt2", "phi", "gemma", *_DECODER_CONFIGS)
"""The decoder-only architectures, those among `KINDS` first."""


def save(kind: str, folder: Path, *, seed: int = 0) -> str:
    """Writes the Hugging Face folder of one of `KINDS` or `DECODERS` (``folder`` must not exist); returns its task."""
    if kind in RECIPES:
        recipe = recipes.load(RECIPES[kind])
        source = recipe.sources[0]
        assert isinstance(source, recipes.RandomSource)
        random_models.build(source.config, source.seed + seed, folder)
        return recipe.task
    if kind in _DECODER_CONFIGS:
        random_models.build({"model_type": kind, **_DECODER_CONFIGS[kind]}, seed, folder)
        return "text-generation"
    task, config = _CONFIGS[kind]
    random_models.build({"model_type": kind, **config}, seed, folder)
    return task
