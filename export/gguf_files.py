"""GGUF files, read through transformers, which dequantises them to fp32 and derives config and tokenizer."""

import contextlib
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rocline.errors import ExportError
from rocline.export.quiet import one_line, quiet


@functools.lru_cache(maxsize=1)
def _reader(path: str) -> Any:
    from gguf.gguf_reader import GGUFReader

    return GGUFReader(path)


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Lets transformers parse a file's metadata once inside the block, not once each for config, tokenizer and weights.

    A vocabulary of 50,000 tokens takes seconds to parse. The progress bar of the dequantisation is left out too: it
    heeds none of transformers' settings.
    """
    from transformers import modeling_gguf_pytorch_utils as loader

    gguf: Any = importlib.import_module("gguf")
    originals = gguf.GGUFReader, loader.tqdm
    gguf.GGUFReader = lambda path: _reader(str(path))
    loader.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        gguf.GGUFReader, loader.tqdm = originals
        _reader.cache_clear()


def licence(path: Path) -> str | None:
    """Returns ``general.license`` of the file's metadata, None where it has none.

    Raises:
        ExportError: the file is no GGUF file or is cut short.
    """
    try:
        field = _reader(str(path)).get_field("general.license")
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise ExportError(f"{path}: is no GGUF file, or it is cut short or damaged: {one_line(error)}") from error
    return str(field.contents()) if field else None


def config(path: Path) -> dict[str, Any]:
    """Returns the transformers config that the file's metadata amount to.

    Raises:
        ExportError: transformers does not read files of this architecture.
    """
    from transformers import AutoConfig

    with quiet():
        try:
            found = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        except (ValueError, KeyError, OSError, IndexError) as error:
            raise ExportError(f"{path}: transformers cannot read it: {one_line(error)}") from error
    document: dict[str, Any] = found.to_dict()
    return document
