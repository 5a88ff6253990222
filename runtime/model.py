"""Finds the ONNX file that a model path stands for."""

from dataclasses import dataclass
from pathlib import Path

from rocline.errors import ModelError
from rocline.runtime.manifest import MANIFEST_NAME, Manifest


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies.

    Attributes:
        folder: the folder that holds the model and its tokenizer, configuration and manifest.
        onnx: the ONNX file.
        manifest: what ``rocline.json`` says, or None where there is none or it does not list this file.
    """

    folder: Path
    onnx: Path
    manifest: Manifest | None


def locate(model: str | Path, *, verify: bool = False) -> ModelFiles:
    """Finds the one ONNX file of ``model``.

    Args:
        model: a folder that ``rocline export`` wrote, any folder with one .onnx file, or an .onnx file; of a folder
            with several, name the file: ``folder/encoder_model.onnx``.
        verify: compare the SHA-256 of every file that the manifest lists.

    Raises:
        ModelError: there is no such path, no ONNX file or several, the manifest cannot be used, or a hash differs.
    """
    path = Path(model)
    if path.is_dir():
        folder = path
        manifest = Manifest.read(folder) if (folder / MANIFEST_NAME).exists() else None
        onnx = _only_file(folder, manifest)
    elif path.exists():
        folder, onnx = path.parent, path
        manifest = Manifest.read(folder) if (folder / MANIFEST_NAME).exists() else None
        if manifest and path.name not in manifest.models:
            manifest = None
    else:
        raise ModelError(f"{path}: no such file or folder; expected a model folder or an .onnx file")
    if verify:
        if manifest is None:
            raise ModelError(f"{path}: nothing to verify against: no {MANIFEST_NAME} lists it")
        manifest.verify(folder)
    return ModelFiles(folder, onnx, manifest)


def _only_file(folder: Path, manifest: Manifest | None) -> Path:
    names = sorted(manifest.models if manifest else (path.name for path in folder.glob("*.onnx")))
    if not names:
        raise ModelError(f"{folder}: no .onnx file in this folder; expected a folder that 'rocline export' wrote")
    if len(names) > 1:
        raise ModelError(f"{folder}: several ONNX files ({', '.join(names)}): name one, e.g. {folder / names[0]}")
    path = folder / names[0]
    if not path.is_file():
        raise ModelError(f"{path}: missing, but listed in {MANIFEST_NAME}")
    return path
