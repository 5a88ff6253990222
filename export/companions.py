"""The files that go beside the ONNX files: config, tokenizer, processor, pooling, chat template, licence."""

import shutil
from pathlib import Path
from typing import Any

from rocline.errors import ExportError
from rocline.export import samples
from rocline.export.quiet import one_line, quiet
from rocline.export.sources import Checkpoint

_COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "normalizer.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
)


def write(checkpoint: Checkpoint, model: Any, folder: Path, *, trust_remote_code: bool = False) -> list[str]:
    """Writes the companions of a checkpoint into ``folder``; returns notes for the manifest.

    A Hugging Face folder's files are copied as they are, a tokenizer without ``tokenizer.json`` is converted to one. A
    GGUF file's are derived from its metadata, with the special tokens set from the ids in the config.

    Raises:
        ExportError: the tokenizer cannot be read or has no fast form.
    """
    if checkpoint.gguf is not None:
        return _from_gguf(checkpoint, model, folder)
    for name in _COPIED:
        source = checkpoint.folder / name
        if source.is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, folder / name)
    templates = checkpoint.folder / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, folder / templates.name)
    if samples.has_tokenizer(folder) and not (folder / "tokenizer.json").is_file():
        tokenizer = _tokenizer(checkpoint, trust_remote_code=trust_remote_code)
        tokenizer.save_pretrained(folder)
        return ["tokenizer converted to tokenizer.json"]
    return []


def _from_gguf(checkpoint: Checkpoint, model: Any, folder: Path) -> list[str]:
    tokenizer = _tokenizer(checkpoint)
    notes = ["weights dequantised from GGUF to fp32"]
    for role in ("bos", "eos", "pad"):
        token_id = getattr(model.config, f"{role}_token_id", None)
        token = tokenizer.convert_ids_to_tokens(token_id) if isinstance(token_id, int) else None
        derived = getattr(tokenizer, f"{role}_token")
        if token is not None and token != derived:
            setattr(tokenizer, f"{role}_token", token)
            notes.append(f"{role}_token set to {token!r} as the GGUF's id {token_id} says (derived: {derived!r})")
    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    return notes


def _tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Any:
    from transformers import AutoTokenizer

    files = {"gguf_file": checkpoint.gguf.name} if checkpoint.gguf else {}
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                checkpoint.folder, local_files_only=True, trust_remote_code=trust_remote_code, **files
            )
        except Exception as error:  # tokenizers raises nothing more special
            raise ExportError(f"{checkpoint.name}: its tokenizer cannot be read: {one_line(error)}") from error
    if not tokenizer.is_fast:
        raise ExportError(
            f"{checkpoint.name}: its tokenizer ({type(tokenizer).__name__}) has no fast form, which the runtime needs"
        )
    return tokenizer
