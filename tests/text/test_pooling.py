import json

import numpy as np
import pytest
import torch
from sentence_transformers.models import Normalize, Pooling

from rocline.errors import ModelError
from rocline.runtime.pooling import SentenceConfig, normalized, pool

# sentence-transformers' names for the poolings.
MODES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}


def batch(seed=3):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(5, 19, 11)).astype(np.float32)
    mask = (np.arange(19) < np.array([19, 1, 7, 18, 2])[:, None]).astype(np.int64)
    return hidden, mask


def write(folder, kinds, pooling):
    modules = [{"idx": i, "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
               for i, kind in enumerate(kinds)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    for module in modules:
        if module["type"].endswith("Pooling"):
            (folder / module["path"]).mkdir()
            (folder / module["path"] / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize("modes", [(mode,) for mode in MODES] + [("cls", "mean")])
def test_pooling_is_that_of_sentence_transformers(modes):
    hidden, mask = batch()
    features = {"token_embeddings": torch.from_numpy(hidden.copy()), "attention_mask": torch.from_numpy(mask)}
    reference = Pooling(11, **{name: mode in modes for mode, name in MODES.items()})
    features = Normalize()(reference(features))
    pooled = pool(hidden, mask, modes)
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(normalized(pooled), features["sentence_embedding"].numpy(), atol=1e-6)


@pytest.mark.parametrize("mode", sorted(set(MODES) - {"weighted_mean"}))
def test_padding_on_the_left_changes_nothing(mode):
    hidden, mask = batch()
    order = np.argsort(mask, axis=1, kind="stable")
    moved = np.take_along_axis(hidden, order[..., None], 1)
    shifted = pool(moved, np.take_along_axis(mask, order, 1), (mode,))
    np.testing.assert_allclose(shifted, pool(hidden, mask, (mode,)), atol=1e-6)


def test_half_precision_is_pooled_in_single():
    hidden, mask = batch()
    half = hidden.astype(np.float16)
    np.testing.assert_array_equal(pool(half, mask, ("mean",)), pool(half.astype(np.float32), mask, ("mean",)))


def test_a_row_of_zeros_stays_zero():
    np.testing.assert_array_equal(normalized(np.zeros((1, 3), np.float32)), [[0, 0, 0]])


def test_modules_say_pooling_and_normalisation(tmp_path):
    pooling = {"word_embedding_dimension": 4, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    write(tmp_path, ["Transformer", "Pooling"], pooling)
    config = SentenceConfig.read(tmp_path)
    assert (config.modes, config.normalize) == (("cls",), False)
    assert config.source == "cls pooling, not normalised: as modules.json says"


def test_without_modules_the_default_is_the_mean_and_said_so(tmp_path):
    config = SentenceConfig.read(tmp_path)
    assert (config.modes, config.normalize, config.max_length) == (("mean",), False, None)
    assert "no modules.json" in config.source


def test_the_shorter_limit_holds_where_sentence_transformers_names_none(tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert SentenceConfig.read(tmp_path).max_length == 64
    (tmp_path / "config.json").write_text("{}")
    assert SentenceConfig.read(tmp_path).max_length is None


def test_an_unknown_module_is_named(tmp_path):
    write(tmp_path, ["Transformer", "Pooling", "Dense"], {"pooling_mode_mean_tokens": True})
    with pytest.raises(ModelError, match="module Dense is unknown"):
        SentenceConfig.read(tmp_path)


def test_a_prompt_that_pooling_must_leave_out_is_refused(tmp_path):
    write(tmp_path, ["Transformer", "Pooling"], {"pooling_mode_mean_tokens": True, "include_prompt": False})
    with pytest.raises(ModelError, match="include_prompt is false"):
        SentenceConfig.read(tmp_path)


@pytest.mark.parametrize("pooling", [{"pooling_mode_telepathy": True}, {"pooling_mode_mean_tokens": False}])
def test_an_unknown_pooling_is_named(tmp_path, pooling):
    write(tmp_path, ["Transformer", "Pooling"], pooling)
    with pytest.raises(ModelError, match="is not a pooling, expected one or more of pooling_mode_cls_token"):
        SentenceConfig.read(tmp_path)


@pytest.mark.parametrize("modules", ['["x"]', '[{"path": ""}]', "[", '{"0": 1}'])
def test_a_damaged_modules_file_is_named(tmp_path, modules):
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(ModelError, match=r"modules\.json"):
        SentenceConfig.read(tmp_path)
