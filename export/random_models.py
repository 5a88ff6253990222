"""Tiny models with seeded random weights, complete enough to export: config, weights, tokenizer, processors.

They stand in for real models wherever only the architecture counts. The same config and seed give the same bytes on
every machine: weights come from NumPy's generator, not from torch's initialisers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rocline.errors import ExportError

# Low ids: RoBERTa's positions start after the padding id.
_SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<mask>")
_PAD, _START, _END, _MASK = range(len(_SPECIAL_TOKENS))
_SAMPLE_RATE = 16_000
# Architectures whose tokenizer frames a text with special tokens, and how.
_FRAMES = {
    "bert": ("<s> $A </s>", "<s> $A </s> $B </s>"),
    "distilbert": ("<s> $A </s>", "<s> $A </s> $B </s>"),
    "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "t5": ("$A </s>", "$A </s> $B </s>"),
    "whisper": ("<s> $A </s>", "<s> $A </s> $B </s>"),
}


def build(config: Mapping[str, Any], seed: int, folder: Path) -> None:
    """Writes a Hugging Face folder: config, safetensors weights, and the tokenizer and processors the model needs.

    Texts are tokenized to their UTF-8 bytes: ids 0 to 3 are padding, start, end and mask, byte b is in 4 to 259. The
    ids, and ``vocab_size`` where the config has none, are filled in.

    Args:
        config: a transformers config: ``model_type``, ``architectures`` (the class to make), sizes.
        seed: of the weights.
        folder: is made; must not exist.

    Raises:
        ExportError: transformers has no such ``model_type`` or architecture.
    """
    import transformers

    model_type, architecture = config["model_type"], config["architectures"][0]
    try:
        config_class = transformers.CONFIG_MAPPING[model_type]
        model_class = getattr(transformers, architecture)
    except (KeyError, AttributeError):
        raise ExportError(
            f"random model: transformers {transformers.__version__} has no model_type {model_type!r} with architecture "
            f"{architecture!r}"
        ) from None
    folder.mkdir(parents=True)
    settings = {key: value for key, value in config.items() if key != "model_type"}
    if _reads_text(model_type):
        tokenizer = _tokenizer(model_type, settings.get("max_position_embeddings"))
        tokenizer.save_pretrained(folder)
        settings.setdefault("vocab_size", len(tokenizer))
        settings |= {"pad_token_id": _PAD, "bos_token_id": _START, "eos_token_id": _END}
    if model_type in ("t5", "whisper"):
        settings["decoder_start_token_id"] = _START
    model_config = config_class(**settings)
    _save_processor(model_config, folder)
    model = model_class(model_config).eval()
    _fill(model, seed)
    if model.can_generate():
        # transformers refuses to save a generation config derived from a model config that it would not accept itself.
        model.generation_config = transformers.GenerationConfig(
            **{key: settings[key] for key in settings if key.endswith("_token_id")}
        )
    model.save_pretrained(folder)


def _reads_text(model_type: str) -> bool:
    return model_type not in ("vit", "yolos")


def _tokenizer(model_type: str, max_length: int | None) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL_TOKENS, *letters))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS))
    if model_type in _FRAMES:
        single, pair = _FRAMES[model_type]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[("<s>", _START), ("</s>", _END)]
        )
    has_types = model_type == "bert"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        mask_token="<mask>",
        model_max_length=max_length or 512,
        model_input_names=["input_ids", *(["token_type_ids"] if has_types else []), "attention_mask"],
    )


def _save_processor(config: Any, folder: Path) -> None:
    """Saves the image processor or feature extractor that the architecture needs, sized as its config says."""
    import transformers

    if config.model_type in ("vit", "yolos"):
        height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
        size = {"height": height, "width": width}
        if config.model_type == "vit":
            transformers.ViTImageProcessor(size=size).save_pretrained(folder)
        else:
            transformers.YolosImageProcessor(size=size, do_pad=False).save_pretrained(folder)
    elif config.model_type == "whisper":
        # The encoder halves the frames, of which there are 100 a second.
        seconds = config.max_source_positions // 50
        transformers.WhisperFeatureExtractor(
            feature_size=config.num_mel_bins, sampling_rate=_SAMPLE_RATE, chunk_length=seconds
        ).save_pretrained(folder)
    elif config.model_type == "wav2vec2":
        transformers.Wav2Vec2FeatureExtractor(sampling_rate=_SAMPLE_RATE, return_attention_mask=True).save_pretrained(
            folder
        )


def _fill(model: Any, seed: int) -> None:
    """Draws every weight so that activations keep their scale: norms near 1, biases near 0."""
    import numpy as np
    import torch

    generator = np.random.Generator(np.random.PCG64(seed))
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            noise = torch.from_numpy(generator.standard_normal(tuple(parameter.shape), dtype=np.float32))
            if parameter.ndim >= 2:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                # A vector of ones is a norm's; biases may have been drawn by torch.
                parameter.copy_(torch.all(parameter == 1) + 0.1 * noise)
