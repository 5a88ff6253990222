"""The Hugging Face JSON files of a model folder, as far as text needs them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocline.errors import ModelError

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


def read_json(folder: Path, name: str) -> Any:
    """Returns the parsed ``folder/name``, or None if there is no such file.

    Raises:
        ModelError: the file is there but not readable as JSON.
    """
    path = folder / name
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from None


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """Returns the JSON object in ``folder/name``, empty if there is no such file.

    Raises:
        ModelError: the file is there but does not hold a JSON object.
    """
    document = read_json(folder, name)
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ModelError(f"{folder / name}: holds a {type(document).__name__}, expected a JSON object")
    return document


@dataclass(frozen=True)
class GenerationConfig:
    """What ends a generation.

    Attributes:
        bos_id: the token that starts a text, for prompts that are empty.
        eos_ids: the tokens that end one.
        context_length: most tokens that prompt and answer may have together; None where the model names no limit.
    """

    bos_id: int | None
    eos_ids: frozenset[int]
    context_length: int | None

    @classmethod
    def read(cls, folder: Path) -> "GenerationConfig":
        """Reads generation_config.json, and config.json for what that leaves out.

        The tokenizer's own eos token is not asked: it is wrong for tokenizers derived from GGUF files.

        Raises:
            ModelError: a file is damaged, or an id or length is not a whole number.
        """
        config = read_object(folder, "config.json")
        text = config.get("text_config") or config
        generation = read_object(folder, "generation_config.json")

        def first(*names: str) -> Any:
            found = (source[name] for source in (generation, text) for name in names if source.get(name) is not None)
            return next(found, None)

        bos, eos, context = first("bos_token_id"), first("eos_token_id"), first(*_CONTEXT_KEYS)
        eos_list = eos if isinstance(eos, list) else [] if eos is None else [eos]
        for name, value in (
            ("bos_token_id", bos),
            ("context length", context),
            *(("eos_token_id", e) for e in eos_list),
        ):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise ModelError(f"{folder / 'config.json'}: {name} is {value!r}, expected a whole number")
        return cls(bos_id=bos, eos_ids=frozenset(eos_list), context_length=context)
