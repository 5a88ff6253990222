"""Inputs to compare a model on: text, an image or a waveform, as the model's own tokenizer or processor makes them.

Random ids exercise a model where it was never trained, so that its differences to PyTorch there say little. Only a
folder without tokenizer or processor gets seeded noise, and `Samples.description` says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rocline.errors import ExportError
from rocline.export.quiet import one_line, quiet

Arrays = dict[str, npt.NDArray[Any]]

_SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset my password?",
    "A wave of 64 lanes reads one row of the weights at a time, multiplies it by the activations held in registers and "
    "leaves a partial sum that the other waves of the block add up before the result is written.",
    "Zurich is the largest city in Switzerland, but it isn't the capital.",
)
_QUESTION = "Where is the library?"
_CONTEXTS = (
    "The library stands beside the river, opposite the old town hall.",
    "Most visitors come for the castle. The library, which few of them see, is in its east wing and opens at nine.",
)
_SOURCES = (
    "translate English to German: The house is wonderful.",
    "summarize: Heavy rain fell over the valley on Monday, and by noon two of the three bridges had been closed.",
)
_SAMPLE_RATE = 16000
_SEED = 20260917


@dataclass(frozen=True)
class Samples:
    """What a model is compared on.

    Attributes:
        inputs: one dict of arrays a batch, by the names the model's forward has: ``input_ids`` int64
            [batch, sequence], ``pixel_values`` float32 [batch, channels, height, width], ``input_features`` or
            ``input_values`` float32, and the masks that go with them.
        description: for the manifest, e.g. ``4 sentences through the model's tokenizer``.
        seeded: whether they are noise, for want of a tokenizer or processor.
    """

    inputs: list[Arrays]
    description: str
    seeded: bool = False


def make(task: str, folder: Path, model_config: Any) -> Samples:
    """Returns real-looking inputs for the task.

    Args:
        task: one of `rocline.export.tasks.TASKS`.
        folder: a folder with the tokenizer or processor files; it may have none.
        model_config: the transformers config of the model.

    Raises:
        ExportError: the folder has a tokenizer or processor, but it cannot be loaded or does not fit the model.
    """
    kind = _modality(task, model_config)
    if kind == "image":
        return _images(folder, model_config)
    if kind == "audio":
        return _waveforms(folder, model_config)
    return _texts(task, folder, model_config)


def has_tokenizer(folder: Path) -> bool:
    """Tells whether the folder holds files a tokenizer can be made from."""
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
    return any((folder / name).is_file() for name in names)


def has_processor(folder: Path) -> bool:
    """Tells whether the folder holds the settings of an image processor or feature extractor."""
    return (folder / "preprocessor_config.json").is_file()


def _modality(task: str, config: Any) -> str:
    if task == "automatic-speech-recognition" or (not hasattr(config, "vocab_size") and hasattr(config, "conv_dim")):
        return "audio"
    if task in ("image-classification", "object-detection"):
        return "image"
    if task == "feature-extraction" and hasattr(config, "num_channels") and not hasattr(config, "vocab_size"):
        return "image"
    if task == "feature-extraction" and (hasattr(config, "num_mel_bins") or hasattr(config, "conv_dim")):
        return "audio"
    return "text"


def _texts(task: str, folder: Path, config: Any) -> Samples:
    if not has_tokenizer(folder):
        return _seeded_ids(config)
    from transformers import AutoTokenizer

    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
            # On the right, so that no query row is masked out altogether: what such a row holds is nobody's contract.
            tokenizer.padding_side = "right"
            batches, what = _encode(task, tokenizer, _length_limit(config))
        except Exception as error:  # tokenizers raises nothing more special
            raise ExportError(f"{folder.name}: its tokenizer cannot be used: {one_line(error)}") from error
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    highest = max(int(batch["input_ids"].max()) for batch in batches)
    if vocabulary is not None and highest >= vocabulary:
        raise ExportError(
            f"the tokenizer makes token id {highest}, but the model's vocabulary has {vocabulary} entries: "
            "the tokenizer belongs to another model"
        )
    return Samples(batches, f"{what} through the model's tokenizer")


def _encode(task: str, tokenizer: Any, limit: int) -> tuple[list[Arrays], str]:
    options = {"padding": True, "truncation": True, "max_length": limit, "return_tensors": "np"}
    if task == "question-answering":
        encoded = tokenizer([_QUESTION] * len(_CONTEXTS), list(_CONTEXTS), **options)
        return [_int64(encoded)], f"{len(_CONTEXTS)} questions with context"
    if task == "fill-mask" and tokenizer.mask_token:
        masked = [sentence.replace("the", tokenizer.mask_token, 1) for sentence in _SENTENCES]
        return [_int64(tokenizer(masked, **options))], f"{len(masked)} sentences with a masked word"
    if task == "text2text-generation":
        return [_int64(tokenizer(list(_SOURCES), **options))], f"{len(_SOURCES)} instructions"
    # A decoder's logits are a vocabulary wide at each position: two sentences show as much as four.
    sentences = list(_SENTENCES[:2] if task == "text-generation" else _SENTENCES)
    # One batch with padding, and one sentence alone: some graphs are wrong only at batch 1 or only without padding.
    batches = [_int64(tokenizer(sentences, **options)), _int64(tokenizer(sentences[:1], **options))]
    return batches, f"{len(sentences)} sentences, together and one alone,"


def _length_limit(config: Any) -> int:
    """Returns how many tokens the model takes, at most 512; RoBERTa keeps two of its positions for padding."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or 512
    return max(1, min(512, positions - 2))


def _int64(encoded: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    return {name: np.asarray(values, dtype=np.int64) for name, values in encoded.items()}


def _seeded_ids(config: Any) -> Samples:
    random = np.random.default_rng(_SEED)
    text_config = config.get_text_config()
    length = min(24, _length_limit(config))
    ids = random.integers(0, text_config.vocab_size, (2, length), dtype=np.int64)
    mask = np.ones_like(ids)
    mask[1, length - length // 3 :] = 0
    return _seeded([{"input_ids": ids, "attention_mask": mask}], "random ids", "tokenizer")


def _seeded(inputs: list[Arrays], what: str, missing: str) -> Samples:
    return Samples(inputs, f"seeded {what} (seed {_SEED}): the folder has no {missing}", seeded=True)


def _images(folder: Path, config: Any) -> Samples:
    images = [_picture(320, 240), _picture(240, 320)]
    if not has_processor(folder):
        size = getattr(config, "image_size", None) or 224
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        channels = getattr(config, "num_channels", 3)
        values = np.random.default_rng(_SEED).normal(size=(2, channels, height, width)).astype(np.float32)
        return _seeded([{"pixel_values": values}], "noise", "image processor")
    from PIL import Image
    from transformers import AutoImageProcessor

    encoded = _process(
        folder,
        AutoImageProcessor,
        lambda processor: processor([Image.fromarray(i) for i in images], return_tensors="np"),
    )
    return Samples([encoded], f"{len(images)} drawn pictures through the model's image processor")


def _picture(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Draws sky, ground and a sun: smooth shades and sharp edges, uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    sky = np.stack([90 + 90 * y / height, 140 + 70 * y / height, np.full_like(y, 235)], axis=-1)
    ground = np.stack([70 + 40 * np.sin(x / 9), 110 + 30 * np.sin(x / 17 + y / 5), np.full_like(y, 50)], axis=-1)
    picture = np.where((y > 0.62 * height)[..., None], ground, sky)
    picture[(x - 0.7 * width) ** 2 + (y - 0.3 * height) ** 2 < (0.12 * height) ** 2] = (255, 236, 120)
    return picture.astype(np.uint8)


def _waveforms(folder: Path, config: Any) -> Samples:
    sounds = [_voice(1.0, 120.0), _voice(0.6, 210.0)]
    if not has_processor(folder):
        random = np.random.default_rng(_SEED)
        if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
            frames = 2 * config.max_source_positions
            shape = (2, config.num_mel_bins, frames)
            features = random.normal(size=shape).astype(np.float32)
            return _seeded([{"input_features": features}], "noise", "feature extractor")
        values = random.normal(size=(2, 8000)).astype(np.float32)
        return _seeded([{"input_values": values}], "noise", "feature extractor")
    from transformers import AutoFeatureExtractor

    encoded = _process(
        folder,
        AutoFeatureExtractor,
        lambda extractor: (
            extractor(sounds, sampling_rate=extractor.sampling_rate, padding=True, return_tensors="np")
            if extractor.model_input_names[0] == "input_values"
            else extractor(sounds, sampling_rate=extractor.sampling_rate, return_tensors="np")
        ),
    )
    return Samples([encoded], f"{len(sounds)} synthetic voices through the model's feature extractor")


def _voice(seconds: float, pitch: float) -> npt.NDArray[np.float32]:
    """Makes a vowel-like sound: a gliding pitch, harmonics, syllables and a little breath; float32 at 16 kHz."""
    time = np.arange(int(seconds * _SAMPLE_RATE)) / _SAMPLE_RATE
    phase = 2 * np.pi * pitch * (time + 0.1 * time**2)
    tone = sum(np.sin(k * phase) / k for k in range(1, 12))
    syllables = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * time)
    breath = np.random.default_rng(_SEED).normal(scale=0.01, size=time.shape)
    return (0.2 * tone * syllables + breath).astype(np.float32)


def _process(folder: Path, auto_class: Any, run: Any) -> Arrays:

    with quiet():
        try:
            encoded = run(auto_class.from_pretrained(folder, local_files_only=True))
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise ExportError(f"{folder.name}: its preprocessor cannot be used: {one_line(error)}") from error
    return {
        name: np.asarray(values, dtype=np.int64 if "mask" in name else np.float32) for name, values in encoded.items()
    }
