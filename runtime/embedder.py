"""Text embeddings: one vector a text, as sentence-transformers computes them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from rocline.errors import InputError, ModelError
from rocline.runtime.manifest import TensorSpec
from rocline.runtime.options import whole_number
from rocline.runtime.pooling import SentenceConfig, normalized, pool
from rocline.runtime.report import Report
from rocline.runtime.session import Session
from rocline.runtime.tokenizer import TextTokenizer

BATCH_TOKENS = 4096
"""Most tokens in one run, padding included, unless a single text is longer."""

_POOLED = "sentence_embedding"
_OUTPUTS = (_POOLED, "last_hidden_state", "token_embeddings")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class Embedder:
    """Turns texts into vectors with an encoder model.

    Pooling, normalisation, longest text and prompts are what the model's sentence-transformers files say; a model
    without them gets the mean over its tokens, not normalised (``config.source`` says which).

    Args:
        model: a model folder, or an .onnx file with the tokenizer and configuration beside it.
        providers, strict, device_id, options: as for `rocline.Session`.
        batch_tokens: most tokens in one run, padding included.

    Attributes:
        config: how texts become vectors.
        hidden: size of a vector.

    Raises:
        ModelError: the model gives no token vectors, needs inputs other than text, or a file is missing or damaged.
        ProviderError, InputError: as for `rocline.Session`.
    """

    def __init__(
        self,
        model: str | Path,
        providers: Sequence[str] | None = None,
        *,
        strict: bool = False,
        device_id: int = 0,
        options: Mapping[str, Any] | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        self._batch_tokens = whole_number("batch_tokens", batch_tokens, 1)
        self._session = Session(model, providers, strict=strict, device_id=device_id, options=options)
        with ExitStack() as unless_made:
            unless_made.callback(self._session.close)
            folder = self._session.folder
            self._input_names = tuple(spec.name for spec in self._session.inputs)
            unknown = [name for name in self._input_names if name not in _INPUTS]
            if unknown:
                raise ModelError(f"{folder}: inputs {', '.join(unknown)} are unknown, expected {', '.join(_INPUTS)}")
            self._output = self._find_output()
            self._tokenizer = TextTokenizer(folder)
            self.config = SentenceConfig.read(folder)
            size = self._output.shape[-1]
            vectors = 1 if self._output.name == _POOLED else len(self.config.modes)
            self.hidden = size * vectors if isinstance(size, int) else self.embed([""]).shape[1]
            unless_made.pop_all()

    @property
    def report(self) -> Report:
        """Where the model runs, and why."""
        return self._session.report

    def embed(self, texts: Iterable[str], *, prompt_name: str | None = None) -> NDArray[np.float32]:
        """Returns one vector a text: [texts, hidden] float32, in the order of ``texts``.

        Args:
            texts: any number of them, none and empty ones included; the end of a text over the model's longest is cut.
            prompt_name: which of ``config.prompts`` to put in front; None: ``config.default_prompt``, if there is one.

        Raises:
            InputError: ``texts`` is not a list of strings, one holds half a character, or the prompt is unknown.
            RoclineError: a run failed, or the embedder is closed.
        """
        if isinstance(texts, str):
            raise InputError("texts is one string, expected a list of strings")
        texts = list(texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"texts[{index}] is a {type(text).__name__}, expected a string")
        prompt = self._prompt(prompt_name)
        if not texts:
            return np.empty((0, self.hidden), np.float32)
        prepared = [self._prepare(prompt + text) for text in texts]
        encodings = self._tokenizer.encode_batch(prepared, max_length=self.config.max_length)
        batches = list(self._batches([len(encoding.ids) for encoding in encodings]))
        pooled = np.concatenate([self._run([encodings[row] for row in rows]) for rows in batches])
        vectors = np.empty_like(pooled)
        vectors[np.concatenate(batches)] = pooled
        return vectors

    def close(self) -> None:
        """Frees the model; a second call does nothing."""
        self._session.close()

    def __enter__(self) -> "Embedder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find_output(self) -> TensorSpec:
        outputs = {spec.name: spec for spec in self._session.outputs}
        for name in _OUTPUTS:
            if name in outputs:
                return outputs[name]
        raise ModelError(
            f"{self._session.folder}: outputs {', '.join(outputs)}, expected one of {', '.join(_OUTPUTS)}; export the "
            "model with --task feature-extraction"
        )

    def _prompt(self, name: str | None) -> str:
        name = name if name is not None else self.config.default_prompt
        if name is None:
            return ""
        if name not in self.config.prompts:
            known = ", ".join(self.config.prompts) or "none"
            raise InputError(f"prompt_name is {name!r}, expected one that the model names: {known}")
        return self.config.prompts[name]

    def _prepare(self, text: str) -> str:
        text = text.strip()
        return text.lower() if self.config.lower_case else text

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Yields the rows of each batch: longest texts first, so that rows of one batch need little padding."""
        rows: list[int] = []
        for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
            if rows and lengths[rows[0]] * (len(rows) + 1) > self._batch_tokens:
                yield rows
                rows = []
            rows.append(row)
        yield rows

    def _run(self, encodings: list[Encoding]) -> NDArray[np.float32]:
        width = max(1, *(len(encoding.ids) for encoding in encodings))
        left = self._tokenizer.config.get("padding_side") == "left"
        ids = np.full((len(encodings), width), self._tokenizer.pad_id, np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            length = len(encoding.ids)
            place = slice(width - length, width) if left else slice(0, length)
            ids[row, place], mask[row, place], types[row, place] = encoding.ids, 1, encoding.type_ids
        feeds = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": types,
            "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0),
        }
        name = self._output.name
        output = self._session.run({key: feeds[key] for key in self._input_names}, [name])[name]
        if name == _POOLED:
            return output.astype(np.float32, copy=False)
        pooled = pool(output, mask, self.config.modes)
        return normalized(pooled) if self.config.normalize else pooled
