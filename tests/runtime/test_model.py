"""A model path stands for one ONNX file, or the error says why it does not."""

import shutil

import pytest
import small_models

from rocline.errors import ModelError
from rocline.runtime import onnx_file
from rocline.runtime.manifest import Manifest, OnnxModel, Source, hash_files
from rocline.runtime.model import locate, onnx_files


def write_folder(folder, names=("model.onnx",)):
    """Writes a model folder as `rocline export` does."""
    models = {}
    for name in names:
        outline = onnx_file.read(small_models.save(small_models.matmul(), folder, name))
        models[name] = OnnxModel(outline.ir_version, outline.opsets, outline.inputs, outline.outputs)
    Manifest(
        source=Source("onnx", "tests", None, None),
        task="feature-extraction",
        dtype="fp32",
        target="cpu",
        cache="none",
        models=models,
        custom_ops=None,
        tools={},
        files=hash_files(folder),
        parity=(),
    ).write(folder)
    return folder


def test_folder_with_a_manifest(tmp_path):
    files = locate(write_folder(tmp_path), verify=True)
    assert (files.folder, files.onnx) == (tmp_path, tmp_path / "model.onnx")
    assert files.manifest is not None
    assert files.manifest.task == "feature-extraction"


def test_bare_file(tmp_path):
    path = small_models.save(small_models.matmul(), tmp_path, "any.name")
    files = locate(str(path))
    assert (files.folder, files.onnx, files.manifest) == (tmp_path, path, None)


def test_folder_with_one_bare_file(tmp_path):
    path = small_models.save(small_models.matmul(), tmp_path, "encoder.onnx")
    (tmp_path / "config.json").write_text("{}")
    assert locate(tmp_path).onnx == path


def test_a_file_of_a_folder_with_several(tmp_path):
    write_folder(tmp_path, ("encoder_model.onnx", "decoder_model_merged.onnx"))
    with pytest.raises(ModelError, match=r"several ONNX files \(decoder_model_merged.onnx, encoder_model.onnx\)"):
        locate(tmp_path)
    files = locate(tmp_path / "encoder_model.onnx")
    assert files.folder == tmp_path
    assert files.manifest is not None
    manifest, paths = onnx_files(tmp_path)
    assert manifest == files.manifest
    assert [path.name for path in paths] == ["decoder_model_merged.onnx", "encoder_model.onnx"]


def test_a_file_that_the_manifest_does_not_list(tmp_path):
    write_folder(tmp_path)
    small_models.save(small_models.matmul(), tmp_path, "other.onnx")
    assert locate(tmp_path / "other.onnx").manifest is None
    assert locate(tmp_path).onnx.name == "model.onnx"
    with pytest.raises(ModelError, match="nothing to verify against"):
        locate(tmp_path / "other.onnx", verify=True)


def test_what_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="none: no such file or folder"):
        locate(tmp_path / "none")
    with pytest.raises(ModelError, match=r"no .onnx file in this folder"):
        locate(tmp_path)
    write_folder(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"model.onnx: missing, but listed in rocline.json"):
        locate(tmp_path)


def test_verify_tells_a_changed_file(tmp_path):
    write_folder(tmp_path)
    with (tmp_path / "model.onnx").open("ab") as file:
        file.write(b"\0")
    locate(tmp_path)
    for path in (tmp_path, tmp_path / "model.onnx"):
        with pytest.raises(ModelError, match=r"model.onnx: SHA-256 is"):
            locate(path, verify=True)


def test_a_damaged_manifest_is_no_bare_model(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "rocline.json").write_text("{}")
    for path in (tmp_path, tmp_path / "model.onnx"):
        with pytest.raises(ModelError, match="field 'source' is missing"):
            locate(path)


def test_a_moved_folder_is_still_good(tmp_path):
    shutil.move(write_folder(tmp_path / "a"), tmp_path / "b")
    assert locate(tmp_path / "b", verify=True).folder == tmp_path / "b"
