"""Where a model comes from: a recipe, a Hugging Face folder, a GGUF or ONNX file, or an id on the hub.

Everything here is decided from small files: no weights are read and no torch imported.
"""

import contextlib
import json
import os
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rocline.errors import ExportError
from rocline.export import gguf_files, recipes
from rocline.export.quiet import one_line, quiet

_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
# The first of a list of licences stands for all.
_CARD_LICENCE = re.compile(r"^(license|license_name):[ \t]*(?:\n\s*-[ \t]*)?['\"]?([^\s'\"]+)", re.MULTILINE)
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors", "README.md", "LICENSE*"]
_HUB_SKIPPED = ["onnx/*", "openvino/*", "coreml/*"]
_TORCH_WEIGHTS = ("pytorch_model.bin.index.json", "pytorch_model.bin")
_SAFETENSORS = ("model.safetensors.index.json", "model.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A model on this machine, ready to be read.

    Attributes:
        kind: ``package``, ``folder``, ``gguf``, ``hub``, ``onnx`` or ``random``, as the manifest's source says it.
        name: what the user gave, or the package or hub id that a recipe led to.
        revision: a hub commit or a package version.
        licence: what the recipe, the model card or the GGUF says; None where nothing does.
        folder: the Hugging Face folder, or the one that holds ``gguf`` or ``onnx``.
        gguf: the GGUF file.
        onnx: the ONNX files, which are adopted rather than exported.
        extras: files that belong beside ``onnx``.
        recipe: the recipe that led here.
    """

    kind: str
    name: str
    revision: str | None
    licence: str | None
    folder: Path
    gguf: Path | None = None
    onnx: tuple[Path, ...] = ()
    extras: tuple[Path, ...] = ()
    recipe: recipes.Recipe | None = None

    def config(self) -> dict[str, Any]:
        """Returns the model's config.json, or what a GGUF's metadata amount to.

        Raises:
            ExportError: it cannot be read.
        """
        if self.gguf is None:
            return read_json(self.folder / "config.json")
        return gguf_files.config(self.gguf)

    @property
    def sentence_embedder(self) -> bool:
        """Whether the folder is a sentence-transformers model."""
        return (self.folder / "modules.json").is_file()


def resolve(source: str | Path, *, scratch: Path, trust_remote_code: bool = False) -> Checkpoint:
    """Finds what ``source`` names; downloads it where it is a hub id.

    Args:
        source: a recipe's name or path, a Hugging Face folder, a .gguf or .onnx file, or OWNER/NAME[@REVISION].
        scratch: where a recipe's random model is made.
        trust_remote_code: whether Python files are downloaded too.

    Raises:
        ExportError: there is nothing of that name, it holds no model, the hub cannot be reached or refuses, or its
            weights are damaged.
    """
    text = str(source)
    path = Path(text).expanduser()
    if path.is_dir():
        is_recipe = (path / recipes.RECIPE_NAME).is_file()
        return from_recipe(recipes.load(path), scratch) if is_recipe else from_folder(path)
    if path.is_file():
        return from_recipe(recipes.load(path), scratch) if path.suffix == ".toml" else _from_file(path)
    if text in recipes.names():
        return from_recipe(recipes.load(text), scratch)
    hub = _HUB_ID.fullmatch(text)
    if hub and path.suffix not in (".gguf", ".onnx", ".toml", ".safetensors"):
        return from_hub(hub["id"], hub["revision"], trust_remote_code=trust_remote_code)
    if os.sep in text or path.suffix:
        raise ExportError(f"{text}: no such file or folder")
    raise ExportError(
        f"{text}: no such recipe, file or folder; the recipes are {', '.join(recipes.names())}; a hub id is OWNER/NAME"
    )


def from_folder(folder: Path) -> Checkpoint:
    """Checks a local Hugging Face folder.

    Raises:
        ExportError: it is empty, has no config.json or weights, or a weights file is damaged.
    """
    if not any(folder.iterdir()):
        raise ExportError(f"{folder}: is empty, expected a Hugging Face model folder")
    if not (folder / "config.json").is_file():
        raise ExportError(f"{folder}: no config.json, expected a Hugging Face model folder, a recipe or a model file")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ExportError(f"{folder / 'config.json'}: holds no JSON object")
    check_weights(folder)
    return Checkpoint("folder", str(folder), None, card_licence(folder), folder)


def from_hub(hub_id: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Checkpoint:
    """Downloads a model from the hub, or takes it from the cache: config, tokenizer, safetensors, else torch weights.

    Raises:
        ExportError: one line that says whether the hub is offline, unreachable, or has no such model or revision.
    """
    from huggingface_hub import constants, errors, snapshot_download
    from requests.exceptions import RequestException

    def download(*patterns: str) -> Path:
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns), ignore_patterns=_HUB_SKIPPED)
        )

    wanted = [*_HUB_FILES, "*.py"] if trust_remote_code else _HUB_FILES
    try:
        with quiet():
            folder = download(*wanted)
            if not any((folder / name).is_file() for name in _SAFETENSORS):
                folder = download(*wanted, "pytorch_model*.bin")
    except errors.GatedRepoError:
        raise ExportError(
            f"{hub_id}: access is gated; accept its terms on the hub and log in with 'hf auth login'"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ExportError(f"{hub_id}: no such folder here and no such model on the hub (or it is private)") from None
    except errors.RevisionNotFoundError:
        raise ExportError(f"{hub_id}: the hub has no revision {revision!r} of it") from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError):
        why = "is switched off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "cannot be reached"
        raise ExportError(f"{hub_id}: no such folder here, not in the download cache, and the hub {why}") from None
    except errors.HFValidationError:
        raise ExportError(f"{hub_id}: is no valid hub id, expected OWNER/NAME") from None
    except (RequestException, errors.HfHubHTTPError, OSError) as error:
        raise ExportError(f"{hub_id}: download from the hub failed: {one_line(error)}") from error
    return replace(from_folder(folder), kind="hub", name=hub_id, revision=folder.name)


def from_recipe(recipe: recipes.Recipe, scratch: Path) -> Checkpoint:
    """Returns the recipe's model from its package, made in ``scratch`` where it is random, or else from the hub.

    Raises:
        ExportError: neither can be had; the line says what to install.
    """
    try:
        located = recipe.locate(scratch)
    except ExportError:
        for other in recipe.sources:
            if isinstance(other, recipes.HubSource):
                with contextlib.suppress(ExportError):
                    return replace(from_hub(other.hub, other.revision), licence=recipe.licence, recipe=recipe)
        raise
    source = located.source
    if not located.paths:
        return replace(from_hub(source.name, source.revision), licence=recipe.licence, recipe=recipe)
    first = located.paths[0]
    found = from_folder(first) if first.is_dir() else _from_file(first)
    onnx = tuple(path for path in located.paths if path.suffix == ".onnx")
    extras = tuple(path for path in located.paths if path.is_file() and path.suffix not in (".onnx", ".gguf"))
    return replace(
        found,
        kind=source.kind,
        name=source.name,
        revision=source.revision,
        licence=source.licence,
        onnx=onnx,
        extras=extras,
        recipe=recipe,
    )


def check_weights(folder: Path) -> None:
    """Checks that a folder has weights and that no safetensors file is cut short.

    Raises:
        ExportError: there are none, a shard is missing, or a file's header does not fit its size.
    """
    for name in (*_SAFETENSORS, *_TORCH_WEIGHTS):
        path = folder / name
        if not path.is_file():
            continue
        shards = [path]
        if name.endswith(".json"):
            shards = [folder / shard for shard in sorted(set(read_json(path).get("weight_map", {}).values()))]
        for shard in shards:
            if not shard.is_file():
                raise ExportError(f"{shard}: missing, but listed in {path.name}")
            if shard.suffix == ".safetensors":
                _check_safetensors(shard)
        return
    raise ExportError(
        f"{folder}: has no weights, expected {_SAFETENSORS[-1]} or {_TORCH_WEIGHTS[-1]} beside config.json"
    )


def _check_safetensors(path: Path) -> None:
    """Holds the header's offsets against the file's size: 8 bytes of length, JSON, then the tensors' bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise ExportError(f"{path}: is cut short or no safetensors file: {size} bytes cannot hold its header")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ExportError(f"{path}: is damaged: its safetensors header cannot be read") from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ExportError(f"{path}: is cut short or damaged: {size} bytes, expected {expected}")


def card_licence(folder: Path) -> str | None:
    """Returns the licence that the model card's front matter names, e.g. ``apache-2.0``."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    front = re.match(r"---\n(.*?)\n---", card.read_text("utf-8", errors="replace"), re.DOTALL)
    fields = dict(_CARD_LICENCE.findall(front[1])) if front else {}
    licence = fields.get("license")
    return fields.get("license_name", licence) if licence == "other" else licence


def _from_file(path: Path) -> Checkpoint:
    if path.suffix == ".gguf":
        return Checkpoint("gguf", str(path), None, gguf_files.licence(path), path.parent, gguf=path)
    if path.suffix == ".onnx":
        return Checkpoint("onnx", str(path), None, card_licence(path.parent), path.parent, onnx=(path,))
    raise ExportError(f"{path}: expected a folder, a recipe (.toml), or a .gguf or .onnx file")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ExportError: the file is missing, not JSON, or not an object.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ExportError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(document, dict):
        raise ExportError(f"{path}: holds no JSON object")
    return document
