"""rocline.json is read back as written, and nothing wrong in it gets past the reader."""

import dataclasses
import json

import pytest

from rocline.errors import ModelError
from rocline.runtime.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    CustomOps,
    Fusion,
    FusionRow,
    Manifest,
    OnnxModel,
    Parity,
    Source,
    TensorSpec,
    hash_files,
    sha256,
)


def manifest(**changes):
    model = OnnxModel(
        ir_version=8,
        opsets={"ai.onnx": 17, "rocline": 1},
        inputs=(TensorSpec("x", "float32", ("batch", 4)),),
        outputs=(TensorSpec("y", "bfloat16", ()),),
    )
    fields = {
        "source": Source("folder", "bert", None, "Apache-2.0"),
        "task": "feature-extraction",
        "dtype": "fp32",
        "target": "rocm",
        "cache": "none",
        "models": {"model.onnx": model},
        "custom_ops": CustomOps("rocline", 1),
        "tools": {"torch": "2.13.0"},
        "files": {},
        "parity": (Parity("model.onnx", "y", 1e-6, 1e-7, 1.0, "torch", "3 sentences"),),
        "notes": ("fused",),
        "fusion": {
            "model.onnx": Fusion(
                rows=(FusionRow("gelu", "Gelu", 2, {"the constant is not 0.5": 1}),),
                nodes_before=9,
                nodes_after=4,
                placement={"ROCMExecutionProvider": {"MatMul": 1, "com.microsoft::Gelu": 2}},
                shapes={"Shape": 1},
            )
        },
    }
    return Manifest(**{**fields, **changes})


def edited(folder, edit):
    manifest().write(folder)
    path = folder / MANIFEST_NAME
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def test_reads_what_it_wrote(tmp_path):
    manifest().write(tmp_path)
    assert Manifest.read(tmp_path) == manifest()


@pytest.mark.parametrize("changes", [{"custom_ops": None}, {"parity": ()}, {"notes": ()}, {"fusion": {}}])
def test_reads_what_may_be_absent(tmp_path, changes):
    manifest(**changes).write(tmp_path)
    assert Manifest.read(tmp_path) == manifest(**changes)


def test_a_manifest_from_before_the_fusion_table_is_read(tmp_path):
    edited(tmp_path, lambda document: document.pop("fusion"))
    assert Manifest.read(tmp_path) == manifest(fusion={})


def test_every_field_is_written(tmp_path):
    manifest().write(tmp_path)
    written = json.loads((tmp_path / MANIFEST_NAME).read_text())
    assert list(written) == [field.name for field in dataclasses.fields(Manifest)]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(format_version=FORMAT_VERSION + 1), "format_version is 2, this rocline reads up to 1"),
        (lambda d: d.update(format_version="1"), "field 'format_version' is a string, expected a whole number"),
        (lambda d: d.pop("task"), "field 'task' is missing"),
        (lambda d: d.update(colour="red"), "unknown field 'colour'"),
        (lambda d: d.update(task=None), "field 'task' is null, expected a string"),
        (lambda d: d["source"].pop("kind"), "field 'source.kind' is missing"),
        (lambda d: d["source"].update(licence=3), "field 'source.licence' is a number, expected a string or null"),
        (lambda d: d.update(notes="fused"), "field 'notes' is a string, expected a list"),
        (lambda d: d["parity"][0].update(bound=True), "field 'parity[0].bound' is a boolean, expected a number"),
        (lambda d: d.update(tools=[]), "field 'tools' is a list, expected an object"),
        (
            lambda d: d["models"]["model.onnx"].update(ir_version=8.5),
            "ir_version' is a number, expected a whole number",
        ),
        (
            lambda d: d["models"]["model.onnx"]["inputs"][0].update(shape=[None]),
            "inputs[0].shape[0]' is null, expected a whole number or a string",
        ),
        (lambda d: d.update(custom_ops=[]), "field 'custom_ops' is a list, expected an object"),
        (lambda d: d.update(models={}), "field 'models' is empty"),
        (lambda d: d.update(files={"../secret": "00"}), "file '../secret' points outside the model folder"),
        (lambda d: d.update(files={"/etc/passwd": "00"}), "file '/etc/passwd' points outside the model folder"),
    ],
)
def test_an_edited_manifest_is_refused(tmp_path, edit, message):
    edited(tmp_path, edit)
    with pytest.raises(ModelError) as caught:
        Manifest.read(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"3"])
def test_what_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ModelError, match=MANIFEST_NAME):
        Manifest.read(tmp_path)


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no rocline.json"):
        Manifest.read(tmp_path)


def test_hashes(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.bin").write_bytes(b"")
    (tmp_path / MANIFEST_NAME).write_text("{}")
    # The first is FIPS 180-2's example.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "a.bin") == expected
    assert list(hash_files(tmp_path)) == ["a.bin", "sub/b.bin"]


def test_verify(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    checked = manifest(files=hash_files(tmp_path))
    checked.verify(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"abd")
    with pytest.raises(ModelError, match=r"a.bin: SHA-256 is .* expected ba7816bf"):
        checked.verify(tmp_path)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(ModelError, match=r"a.bin: missing"):
        checked.verify(tmp_path)
