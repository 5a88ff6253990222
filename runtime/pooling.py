"""From token vectors to one vector a text, as the model's sentence-transformers files say."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rocline.errors import ModelError
from rocline.runtime.hf_config import read_json, read_object

_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}

_NO_LIMIT = 10**20
"""A tokenizer's ``model_max_length`` from here up means none (transformers.tokenization_utils_base.LARGE_INTEGER)."""


@dataclass(frozen=True)
class SentenceConfig:
    """How texts become vectors.

    Attributes:
        modes: poolings out of cls, max, mean, mean_sqrt_len, weighted_mean and last; several are concatenated.
        normalize: whether vectors are scaled to length 1.
        max_length: longest text in tokens, special tokens included; None: no limit.
        lower_case: whether texts are lower-cased first.
        prompts: texts to put in front, by name.
        default_prompt: the name of the prompt that is used where none is asked for.
        source: where the pooling comes from, in words.
    """

    modes: tuple[str, ...]
    normalize: bool
    max_length: int | None
    lower_case: bool
    prompts: dict[str, str]
    default_prompt: str | None
    source: str

    @classmethod
    def read(cls, folder: Path) -> "SentenceConfig":
        """Reads modules.json and what it points to; a model without it gets mean pooling, not normalised.

        Raises:
            ModelError: a file is damaged, or asks for a module or pooling that is not known.
        """
        sentence = read_object(folder, "sentence_bert_config.json")
        prompts = read_object(folder, "config_sentence_transformers.json")
        max_length = sentence.get("max_seq_length")
        if max_length is None:
            positions = read_object(folder, "config.json").get("max_position_embeddings")
            limits = (positions, read_object(folder, "tokenizer_config.json").get("model_max_length"))
            max_length = min((int(limit) for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)
        modes: tuple[str, ...] = ("mean",)
        normalize = False
        source = "mean pooling, not normalised: the model has no modules.json that says otherwise"
        modules = read_json(folder, "modules.json")
        if modules is not None:
            kinds = [_kind(module, folder) for module in modules]
            for kind in kinds:
                if kind not in ("Transformer", "Pooling", "Normalize"):
                    raise ModelError(
                        f"{folder / 'modules.json'}: module {kind} is unknown, expected Transformer, Pooling, Normalize"
                    )
            normalize = "Normalize" in kinds
            if "Pooling" in kinds:
                modes = _modes(folder / modules[kinds.index("Pooling")]["path"])
            source = f"{' + '.join(modes)} pooling, {'' if normalize else 'not '}normalised: as modules.json says"
        return cls(
            modes=modes,
            normalize=normalize,
            max_length=max_length,
            lower_case=bool(sentence.get("do_lower_case", False)),
            prompts=dict(prompts.get("prompts") or {}),
            default_prompt=prompts.get("default_prompt_name"),
            source=source,
        )


def pool(hidden: NDArray[Any], mask: NDArray[np.int64], modes: tuple[str, ...]) -> NDArray[np.float32]:
    """Returns one vector a row: [batch, modes * hidden] float32.

    Args:
        hidden: [batch, tokens, hidden], any float dtype.
        mask: [batch, tokens], 1 for a token and 0 for padding, on either side.
        modes: see `SentenceConfig`.
    """
    hidden = hidden.astype(np.float32, copy=False)
    return np.concatenate([_pool_one(hidden, mask, mode) for mode in modes], axis=1)


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales each row to length 1; a row of zeros stays."""
    lengths: NDArray[np.float32] = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return vectors / lengths


def _pool_one(hidden: NDArray[np.float32], mask: NDArray[np.int64], mode: str) -> NDArray[np.float32]:
    rows = np.arange(len(hidden))
    pooled: NDArray[np.float32]
    if mode == "cls":
        pooled = hidden[rows, mask.argmax(axis=1)]
    elif mode == "last":
        pooled = hidden[rows, mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)]
    elif mode == "max":
        pooled = np.where(mask[..., None] > 0, hidden, np.float32(-1e9)).max(axis=1)
    else:
        weights = mask.astype(np.float32)
        if mode == "weighted_mean":
            weights *= np.arange(1, mask.shape[1] + 1, dtype=np.float32)
        count = np.maximum(weights.sum(axis=1, keepdims=True), np.float32(1e-9))
        pooled = np.einsum("bth,bt->bh", hidden, weights) / (np.sqrt(count) if mode == "mean_sqrt_len" else count)
    return pooled


def _kind(module: Any, folder: Path) -> str:
    try:
        return str(module["type"]).rpartition(".")[2]
    except (TypeError, KeyError):
        raise ModelError(f"{folder / 'modules.json'}: {module!r}, expected objects with 'type' and 'path'") from None


def _modes(folder: Path) -> tuple[str, ...]:
    config = read_object(folder, "config.json")
    if config.get("include_prompt") is False:
        raise ModelError(
            f"{folder / 'config.json'}: include_prompt is false, expected true: prompts are pooled with texts"
        )
    chosen = [name for name, value in config.items() if name.startswith("pooling_mode_") and value]
    unknown = [name for name in chosen if name not in _MODES]
    if unknown or not chosen:
        raise ModelError(
            f"{folder / 'config.json'}: {', '.join(unknown) or 'no pooling'} is not a pooling, expected one or more of "
            f"{', '.join(_MODES)}"
        )
    return tuple(mode for name, mode in _MODES.items() if name in chosen)
