"""Text to token ids and back: ``tokenizer.json`` through the ``tokenizers`` library."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from rocline.errors import InputError, ModelError
from rocline.runtime.hf_config import read_object

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextTokenizer:
    """The tokenizer of a model folder. It keeps no state between calls: padding and truncation are the caller's.

    Attributes:
        config: tokenizer_config.json, empty if there is none.
        special_tokens: the special tokens by role (``bos_token``, ``eos_token``, ...), as chat templates see them.
    """

    def __init__(self, folder: Path) -> None:
        """Loads ``folder/tokenizer.json``.

        Raises:
            ModelError: the file is missing or damaged.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                f"{folder}: no tokenizer.json; export the model from a folder or hub id that has a fast tokenizer"
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises bare Exceptions
            raise ModelError(f"{path}: not readable as a tokenizer: {error}") from None
        self._padding = self._tokenizer.padding
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.config = read_object(folder, "tokenizer_config.json")
        named = read_object(folder, "special_tokens_map.json") | self.config
        self.special_tokens: dict[str, Any] = {
            name: _content(value)
            for name, value in named.items()
            if value is not None and (name.endswith("_token") or name == "additional_special_tokens")
            if isinstance(value, (str, dict, list))
        }

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of one text, with the special tokens that the tokenizer itself puts around it.

        Raises:
            InputError: the text holds half a character.
        """
        _require_whole(text)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_batch(self, texts: Sequence[str], *, max_length: int | None) -> list[Encoding]:
        """Returns one unpadded encoding a text; a text over ``max_length`` loses its end, not its special tokens.

        Raises:
            InputError: a text holds half a character.
        """
        for text in texts:
            _require_whole(text)
        plain = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        if max_length is not None:
            room = max(max_length - self._tokenizer.num_special_tokens_to_add(False), 0)
            direction = self.config.get("truncation_side", "right")
            for encoding in plain:
                encoding.truncate(room, direction=direction)
        return [self._tokenizer.post_process(encoding, None, True) for encoding in plain]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of the ids without the special tokens; bytes that are no UTF-8 become U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    @property
    def pad_id(self) -> int:
        """The id that fills up the short rows of a batch."""
        token = self.special_tokens.get("pad_token")
        found = self._tokenizer.token_to_id(token) if token is not None else None
        if found is None:
            found = self._padding["pad_id"] if self._padding else 0
        return int(found)


class Detokenizer:
    """Turns one token after the other into text, giving out only what later tokens cannot change.

    A token may hold part of a character, and whether a SentencePiece token starts with a space depends on what stands
    before it: so each token is decoded together with those of the piece before it, at first with the prompt.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt)
        self._given = len(self._ids)

    def push(self, token: int) -> str:
        """Returns the text that is certain now, empty while a character is incomplete."""
        self._ids.append(token)
        return self._take(hold=True)

    def flush(self) -> str:
        """Returns what was held back; an incomplete character becomes U+FFFD."""
        return self._take(hold=False)

    def _take(self, *, hold: bool) -> str:
        before = self._tokenizer.decode(self._ids[: self._given])
        text = self._tokenizer.decode(self._ids)
        if len(text) <= len(before) or (hold and text.endswith(_REPLACEMENT)):
            return ""
        del self._ids[: self._given]
        self._given = len(self._ids)
        return text[len(before) :]


def _require_whole(text: str) -> None:
    """Refuses lone surrogates: what Python makes of bytes that are no UTF-8, and of UTF-16 cut in two."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"text: {text[error.start]!r} at character {error.start} is half a character, expected valid Unicode "
            "(is the input UTF-8?)"
        ) from None


def _content(value: Any) -> Any:
    if isinstance(value, list):
        return [_content(item) for item in value]
    return value["content"] if isinstance(value, dict) else value
