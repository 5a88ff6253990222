"""Tiny models traced to fp32 ONNX files beside their PyTorch originals, made once a test run."""

import functools
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tiny_models

from rocline.export import optimum_export, reference, samples, sources


@dataclass(frozen=True)
class Exported:
    """A torch model, what to feed it, and a copy of its ONNX files that the test may change."""

    model: Any
    task: str
    samples: samples.Samples
    files: dict[str, Path]

    def cases(self) -> list[reference.Case]:
        return reference.cases(self.model, self.task, self.samples, self.files)

    @property
    def path(self) -> Path:
        (path,) = self.files.values()
        return path


def exported(kind: str, folder: Path) -> Exported:
    """Returns one of `tiny_models.KINDS` with its ONNX files copied into ``folder``."""
    made = _traced_kind(kind)
    copies = {name: Path(shutil.copy(path, folder / name)) for name, path in made.files.items()}
    return replace(made, files=copies)


def traced(folder: Path, task: str) -> Exported:
    """Traces the Hugging Face folder ``source`` in ``folder``."""
    checkpoint = sources.resolve(folder / "source", scratch=folder)
    model = optimum_export.load_model(checkpoint, checkpoint.config(), task)
    (folder / "onnx").mkdir()
    opset = optimum_export.default_opset(model, task)
    files = optimum_export.trace(model, task, folder / "onnx", opset=opset)
    fed = samples.make(task, folder / "source", model.config)
    return Exported(model, task, fed, {path.name: path for path in files})


@functools.cache
def _traced_kind(kind: str) -> Exported:
    folder = Path(_scratch().name) / kind
    return traced(folder, tiny_models.save(kind, folder / "source"))


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rocline-exported-")
