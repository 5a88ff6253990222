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
        manifest, files = onnx_files(path, verify=verify)
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise ModelError(f"{path}: several ONNX files ({names}): name one, e.g. {files[0]}")
        return ModelFiles(path, files[0], manifest)
    if not path.exists():
        raise ModelError(f"{path}: no such file or folder; expected a model folder or an .onnx file")
    manifest = _read_manifest(path.parent)
    if manifest is not None and path.name not in manifest.models:
        manifest = None
    if verify:
        _verify(path, path.parent, manifest)
    return ModelFiles(path.parent, path, manifest)


def onnx_files(folder: Path, *, verify: bool = False) -> tuple[Manifest | None, list[Path]]:
    """Returns a folder's manifest, if it has one, and its ONNX files: those that the manifest lists, else all, sorted.

    Raises:
        ModelError: there is no ONNX file, the manifest cannot be used or lists one that is missing, or a hash differs.
    """
    manifest = _read_manifest(folder)
    files = [folder / name for name in sorted(manifest.models)] if manifest else sorted(folder.glob("*.onnx"))
    if not files:
        raise ModelError(f"{folder}: no .onnx file in this folder; expected a folder that 'rocline export' wrote")
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file}: missing, but listed in {MANIFEST_NAME}")
    if verify:
        _verify(folder, folder, manifest)
    return manifest, files


def _read_manifest(folder: Path) -> Manifest | None:
    return Manifest.read(folder) if (folder / MANIFEST_NAME).exists() else None


def _verify(model: Path, folder: Path, manifest: Manifest | None) -> None:
    if manifest is None:
        raise ModelError(f"{model}: nothing to verify against: no {MANIFEST_NAME} lists it")
    manifest.verify(folder)
