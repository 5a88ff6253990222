"""Tiny models traced to fp32 ONNX files beside their PyTorch originals, made once a test run."""

import functools
import shutil
import tempfile
from dataclasses import dataclass
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
    model, task, fed, files = _trace(kind)
    copies = {path.name: Path(shutil.copy(path, folder / path.name)) for path in files}
    return Exported(model, task, fed, copies)


@functools.cache
def _trace(kind: str) -> tuple[Any, str, samples.Samples, list[Path]]:
    folder = Path(_scratch().name) / kind
    task = tiny_models.save(kind, folder / "source")
    checkpoint = sources.resolve(folder / "source", scratch=folder)
    model = optimum_export.load_model(checkpoint, checkpoint.config(), task)
    (folder / "onnx").mkdir()
    opset = optimum_export.default_opset(model, task)
    files = optimum_export.trace(model, task, folder / "onnx", opset=opset)
    return model, task, samples.make(task, folder / "source", model.config), files


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rocline-exported-")
