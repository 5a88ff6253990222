"""MiniLM- and Llama-shaped models on the simulated device: the ROCm provider gives what the CPU gives."""

import json
import sys

import pytest
import tiny_models
from simulated_device import PROGRAMS, run

from rocline.export import export_model

MODELS = {
    "encoder": ("bert", {}),
    "encoder_fp16": ("bert", {"dtype": "fp16"}),
    "portable": ("distilbert", {"target": "portable"}),
    "decoder": ("llama", {}),
    "decoder_fp16": ("llama", {"dtype": "fp16"}),
    "growing": ("gpt2", {"cache": "growing"}),
}
# Relative to the largest element; half precision rounds in each layer, in another order.
TOLERANCES = {"fp32": 2e-6, "fp16": 4e-3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    sources = {name: root / f"{name}-source" for name, _ in MODELS.values()}
    for name, source in sources.items():
        tiny_models.save(name, source)
    for name, (architecture, options) in MODELS.items():
        export_model(sources[architecture], root / name, **options)
    return [root / name for name in MODELS]


@pytest.mark.parametrize(("mode", "gpu"), [("lazy", "gfx90a"), ("threaded", "gfx1100")])
def test_the_device_gives_what_the_cpu_gives(folders, mode, gpu):
    done = run([sys.executable, PROGRAMS / "models.py", *folders], mode, HIPSIM_ARCH=gpu)
    assert done.status == 0, done.errors
    results = json.loads(done.output)
    assert set(results) == set(MODELS)
    for name, (_, options) in MODELS.items():
        assert results[name]["active"][0] == "ROCMExecutionProvider", name
        assert results[name]["worst"] < TOLERANCES[options.get("dtype", "fp32")], name
    # What is exported for ROCm leaves nothing to the CPU.
    for name in ("encoder", "encoder_fp16", "decoder", "decoder_fp16"):
        assert set(results[name]["placement"]) == {"ROCMExecutionProvider"}, name
