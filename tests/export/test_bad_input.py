"""Every wrong input of `rocline export`: one clear line, nothing left behind, nothing overwritten."""

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
import tiny_models
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from rocline.errors import ExportError, ModelError, ParityError
from rocline.export import export_model
from rocline.runtime.manifest import Manifest


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bert"
    tiny_models.save("bert", folder)
    return folder


@pytest.fixture
def copy(bert, tmp_path):
    return shutil.copytree(bert, tmp_path / "source")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(source, tmp_path, message, kind=ExportError, **options):
    with pytest.raises(kind, match=message) as raised:
        export_model(source, tmp_path / "place" / "out", **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "place").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "translation"}, "task 'translation' is unknown, expected one of feature-extraction, text-class"),
        ({"task": "text-generation"}, "task 'text-generation' does not fit BertModel, expected feature-extraction"),
        ({"opset": 23}, "opset 23: target 'rocm' loads opsets up to 22"),
        ({"opset": 0}, "opset 0: target 'rocm' loads"),
        ({"opset": 7}, "Optimum could not export"),
        ({"target": "tpu"}, "target 'tpu': expected one of .*rocm"),
        ({"dtype": "int3"}, "dtype 'int3': target 'rocm' runs fp32"),
        ({"dtype": "bf16", "target": "migraphx"}, "dtype 'bf16': target 'migraphx' runs"),
        ({"cache": "paged"}, "cache 'paged': expected static or growing"),
        ({"cache": "growing", "sampling_head": True}, "sampling_head: cache is 'growing', expected 'static'"),
    ],
)
def test_arguments(bert, tmp_path, options, message):
    refused(bert, tmp_path, message, **options)


def test_an_opset_without_the_operators_prints_no_graph(bert, tmp_path, capfd):
    refused(bert, tmp_path, "'aten::scaled_dot_product_attention' to ONNX opset version 13 is not supported", opset=13)
    assert capfd.readouterr().out == ""


def test_arguments_are_refused_before_the_source_is_read(tmp_path):
    refused("no/such/folder", tmp_path, "opset 23", opset=23)


@pytest.mark.parametrize("source", ["no/such/folder", "no-such-recipe", "owner/not-on-this-machine"])
def test_sources_that_are_not_there(tmp_path, monkeypatch, source):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(source, tmp_path, f"{source}: no such")


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, "is empty")


def test_a_folder_that_exists_is_not_touched(bert, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    for force, message in ((False, "exists already"), (True, "holds files but no rocline.json")):
        with pytest.raises(ExportError, match=message):
            export_model(bert, out, force=force)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_nan_weights_are_refused_by_name(copy, tmp_path):
    weights = load_file(copy / "model.safetensors")
    name = sorted(weights)[3]
    weights[name].flat[-1] = np.nan
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused(copy, tmp_path, f"weights hold NaN, first in '{name}'")


def test_weights_without_the_tasks_head_are_refused(copy, tmp_path):
    edit_config(copy, architectures=["BertForSequenceClassification"])
    refused(copy, tmp_path, "weights lack 2 tensors that task 'text-classification' needs, e.g. classifier.bias")


def test_quantised_weights_are_refused(copy, tmp_path):
    edit_config(copy, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(copy, tmp_path, r"weights are quantised \(gptq\)")


def test_weights_of_other_shapes_are_refused(copy, tmp_path):
    edit_config(copy, hidden_size=64)
    refused(copy, tmp_path, "PyTorch cannot load it: ")


def test_a_config_that_is_no_json(copy, tmp_path):
    (copy / "config.json").write_text("{")
    refused(copy, tmp_path, "config.json: not readable as JSON")


def test_a_malicious_pickle_does_not_run(copy, tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps({"embeddings": Payload()}))
    refused(copy, tmp_path, "want to run code when read|PyTorch cannot load it")
    assert not (tmp_path / "pwned").exists()


def test_torch_weights_without_code_are_read(copy, tmp_path):
    import torch

    weights = {name: torch.from_numpy(array) for name, array in load_file(copy / "model.safetensors").items()}
    torch.save(weights, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert export_model(copy, tmp_path / "out").parity


def test_code_that_comes_with_the_model_runs_only_when_asked(copy, tmp_path):
    (copy / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'pwned')!r})\n")
    edit_config(copy, model_type="homemade", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    refused(copy, tmp_path, "needs Python code that comes with the model .*--trust-remote-code")
    assert not (tmp_path / "pwned").exists()


def test_remote_code_beside_a_known_architecture_is_left_alone(copy, tmp_path):
    (copy / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'pwned')!r})\n")
    edit_config(copy, auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    export_model(copy, tmp_path / "out")
    assert not (tmp_path / "pwned").exists()


def test_a_model_that_misses_its_bound(bert, tmp_path):
    refused(bert, tmp_path, "output 'last_hidden_state'.*bound 1e-12", kind=ParityError, parity_bound=1e-12)


def onnx_file(folder, *, opset=17, ir_version=8, weight=1.0):
    weights = numpy_helper.from_array(np.full(1000, weight, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1000])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    folder.mkdir(exist_ok=True)
    return model, folder / "given.onnx"


def test_damaged_onnx_files(tmp_path):
    model, path = onnx_file(tmp_path / "given")
    whole = model.SerializeToString()
    for content in (whole[:-9], whole[: len(whole) // 2], b"", b"not a model at all"):
        path.write_bytes(content)
        refused(path, tmp_path, "given.onnx: ", kind=ModelError)
    del model.graph.node[0].input[1]
    path.write_bytes(model.SerializeToString())
    refused(path, tmp_path, "breaks ONNX's rules")


def test_onnx_files_the_target_does_not_load_or_that_hold_nan(tmp_path):
    model, path = onnx_file(tmp_path / "given", opset=24)
    path.write_bytes(model.SerializeToString())
    refused(path, tmp_path, "opset 24: target 'rocm' loads opsets up to 22")
    model, path = onnx_file(tmp_path / "given", weight=np.nan)
    path.write_bytes(model.SerializeToString())
    refused(path, tmp_path, "weights hold NaN, first in 'w'")
    model, path = onnx_file(tmp_path / "given")
    path.write_bytes(model.SerializeToString())
    refused(path, tmp_path, "holds fp32 weights and is adopted as it is: pass --dtype fp32", dtype="fp16")


def test_external_data_that_are_missing_short_or_outside(tmp_path):
    model, path = onnx_file(tmp_path / "given")
    onnx.save_model(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    data = path.with_name("w.bin")
    data.write_bytes(data.read_bytes()[:-4])
    refused(path, tmp_path, "'w.bin' has 3996 bytes, expected 4000", kind=ModelError)
    data.rename(tmp_path / "w.bin")
    refused(path, tmp_path, "'w.bin' is missing", kind=ModelError)
    model = onnx.load_model(path, load_external_data=False)
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == "location").value = "../w.bin"
    path.write_bytes(model.SerializeToString())
    refused(path, tmp_path, "points outside the model's folder", kind=ModelError)


def test_a_disk_that_fills_while_the_manifest_is_written(bert, tmp_path, monkeypatch):
    def fail(self, folder):
        assert (folder / "model.onnx").is_file()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Manifest, "write", fail)
    refused(bert, tmp_path, r"no space to write it \(No space left on device\)")


def run_export(source, out, **options):
    command = [sys.executable, "-m", "rocline", "export", str(source), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_file_that_grows_past_what_the_system_allows(bert, tmp_path):
    limit = (bert / "model.safetensors").stat().st_size // 2
    child = run_export(
        bert,
        tmp_path / "place" / "out",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    output, errors = child.communicate(timeout=600)
    assert (child.returncode, output) == (1, "")
    assert errors.splitlines()[-1].endswith("no space to write it (File too large): free some, or choose another disk")
    assert not (tmp_path / "place").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_leaves_nothing(bert, tmp_path, number, status):
    child = run_export(bert, tmp_path / "place" / "out")
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("place/.out.*.partial/config.json")):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(number)
    output, errors = child.communicate(timeout=600)
    assert (child.returncode, output) == (status, "")
    assert "Traceback" not in errors
    assert not (tmp_path / "place").exists()
