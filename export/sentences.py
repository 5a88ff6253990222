"""How a sentence embedder's tokens become one vector, as far as the graph can do it itself."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rocline.custom_ops.pool_normalize.spec import MODES
from rocline.errors import ModelError
from rocline.runtime.hf_config import read_object
from rocline.runtime.pooling import SentenceConfig, normalized, pool

OUTPUT = "sentence_embedding"


def pooling(folder: Path) -> tuple[str, bool] | None:
    """Returns PoolNormalize's mode for a sentence-transformers model, and whether vectors are made of length 1.

    None where the model asks for something else: several poolings, another one, a module of its own, or the first token
    where the tokenizer pads in front of it.

    Args:
        folder: with the model's companions.
    """
    try:
        config = SentenceConfig.read(folder)
    except ModelError:
        return None
    padded_in_front = read_object(folder, "tokenizer_config.json").get("padding_side") == "left"
    if len(config.modes) != 1 or config.modes[0] not in MODES or (config.modes[0] == "cls" and padded_in_front):
        return None
    return config.modes[0], config.normalize


def pooled(hidden: npt.NDArray[Any], mask: npt.NDArray[np.int64], chosen: tuple[str, bool]) -> npt.NDArray[np.float32]:
    """Returns what the graph's head has to give: [batch, hidden], for token vectors [batch, tokens, hidden]."""
    mode, normalize = chosen
    vectors = pool(hidden, mask, (mode,))
    return normalized(vectors) if normalize else vectors
