"""`rocline run`, `inspect` and `doctor`: what they print, what they save, what they refuse."""

import json

import numpy as np
import onnx
import pytest
import small_models
from command_line import rocline, rocline_process
from onnx import TensorProto, helper

from rocline.runtime import doctor, onnx_file, probe
from rocline.runtime.manifest import Manifest, OnnxModel, Parity, Source, hash_files
from rocline.runtime.timing import time_runs

CPU = ("--provider", "cpu")


@pytest.fixture
def matmul(tmp_path):
    return small_models.save(small_models.matmul(), tmp_path / "model")


@pytest.fixture
def ones(tmp_path):
    np.save(tmp_path / "ones.npy", np.ones((2, 4), np.float32))
    return tmp_path / "ones.npy"


@pytest.fixture
def folder(tmp_path):
    """A model folder as `rocline export` writes it."""
    folder = tmp_path / "exported"
    outline = onnx_file.read(small_models.save(small_models.matmul(), folder))
    Manifest(
        source=Source("hub", "someone/model", "abc123", "Apache-2.0"),
        task="feature-extraction",
        dtype="fp32",
        target="cpu",
        cache="none",
        models={"model.onnx": OnnxModel(outline.ir_version, outline.opsets, outline.inputs, outline.outputs)},
        custom_ops=None,
        tools={"torch": "2.13.0"},
        files=hash_files(folder),
        parity=(Parity("model.onnx", "y", 1e-6, 1e-7, 1e-5, "torch 2.13.0", "3 sentences"),),
        notes=("a note",),
    ).write(folder)
    return folder


def test_run_from_a_file(matmul, ones):
    result = rocline("run", matmul, "--input", f"x={ones}", *CPU)
    assert (result.status, result.err) == (0, "")
    assert result.out == "y: float32 [2, 3]  min 18, max 26, mean 22, NaN 0\nran on CPUExecutionProvider\n"


def test_run_from_an_archive(matmul, tmp_path):
    np.savez(tmp_path / "both.npz", x=np.ones((1, 4), np.float32), z=np.zeros(3))
    assert "[1, 3]  min 18" in rocline("run", matmul, "--input", f"x={tmp_path}/both.npz", *CPU).out
    np.savez(tmp_path / "one.npz", anything=np.ones((1, 4), np.float32))
    assert "[1, 3]  min 18" in rocline("run", matmul, "--input", f"x={tmp_path}/one.npz", *CPU).out
    result = rocline("run", matmul, "--input", f"w={tmp_path}/both.npz", *CPU)
    assert result.err == f"rocline: input 'w': {tmp_path}/both.npz has no array of this name, only x, z\n"


def test_run_says_why_it_fell_back(matmul):
    result = rocline_process("run", matmul, "--random")
    assert result.status == 0
    (line,) = result.err.splitlines()
    assert "libamdhip64.so.7" in line
    strict = rocline_process("run", matmul, "--random", "--strict")
    assert (strict.status, strict.out) == (1, "")
    (strict_line,) = strict.err.splitlines()
    assert line.partition(": ")[2] in strict_line


def test_run_with_made_up_inputs(matmul):
    first, again, other, larger = (
        rocline("run", matmul, "--random", *CPU, *more).out for more in ([], [], ["--seed", "1"], ["--dim", "batch=5"])
    )
    assert first == again != other
    assert "[1, 3]" in first
    assert "[5, 3]" in larger
    assert "[7, 3]" in rocline("run", matmul, "--random", "--shape", "x:7x4", *CPU).out


def test_symbols_add_up(tmp_path):
    proto = small_models.model(
        [helper.make_node("Concat", ["past", "new"], ["y"], axis=0), helper.make_node("Identity", ["all"], ["z"])],
        [("past", 1, ["past"]), ("new", 1, ["new"]), ("all", 1, ["past + new"])],
        [("y", 1, ["n"]), ("z", 1, ["m"])],
    )
    path = small_models.save(proto, tmp_path)
    result = rocline("run", path, "--random", "--dim", "past=3", "--dim", "new=2", *CPU)
    assert "y: float32 [5]" in result.out
    assert "z: float32 [5]" in result.out


def test_run_describes_every_kind_of_output(tmp_path):
    kinds = [("f", TensorProto.FLOAT16), ("i", TensorProto.INT8), ("b", TensorProto.BOOL), ("s", TensorProto.STRING)]
    proto = small_models.model(
        [helper.make_node("Identity", [name], [f"{name}/out"]) for name, _ in kinds],
        [(name, kind, [2, 0] if name == "i" else [2]) for name, kind in kinds],
        [(f"{name}/out", kind, None) for name, kind in kinds],
    )
    np.save(tmp_path / "f.npy", np.array([np.nan, 2], np.float16))
    np.save(tmp_path / "s.npy", np.array(["one", "two"]))
    path = small_models.save(proto, tmp_path)
    given = ["--input", f"f={tmp_path}/f.npy", "--input", f"s={tmp_path}/s.npy"]
    result = rocline("run", path, "--random", *given, "--output", tmp_path / "out", *CPU)
    assert result.err == ""
    lines = result.out.splitlines()
    assert lines[0] == "f/out: float16 [2]  min 2, max 2, mean 2, NaN 1"
    assert lines[1] == "i/out: int8 [2, 0]  NaN 0"
    assert lines[2].startswith("b/out: bool [2]  min ")
    assert lines[3] == "s/out: string [2]  first 'one', 'two'"
    assert np.load(tmp_path / "out/s_out.npy").tolist() == ["one", "two"]
    document = json.loads(rocline("run", path, "--random", *given, "--json", *CPU).out)
    assert [output["dtype"] for output in document["outputs"]] == ["float16", "int8", "bool", "string"]


def test_run_as_json(matmul, ones):
    result = rocline("run", matmul, "--input", f"x={ones}", "--json", "--runs", "3", "--placement", *CPU)
    document = json.loads(result.out)
    output = {"name": "y", "dtype": "float32", "shape": [2, 3], "nan": 0, "min": 18, "max": 26, "mean": 22}
    assert document["outputs"] == [output]
    assert document["report"] == {
        "requested": ["CPUExecutionProvider"],
        "active": ["CPUExecutionProvider"],
        "fallbacks": [],
        "notes": [],
        "placement": {"CPUExecutionProvider": {"MatMul": 1}},
    }
    assert document["timing"]["runs"] == 3
    assert 0 < document["timing"]["median_ms"] <= document["timing"]["p99_ms"]
    fell_back = json.loads(rocline("run", matmul, "--input", f"x={ones}", "--json").out)
    assert fell_back["report"]["fallbacks"][0]["provider"] == "ROCMExecutionProvider"
    assert fell_back["timing"] is None


def test_run_prints_placement_and_times(matmul):
    out = rocline("run", matmul, "--random", "--placement", "--runs", "2", *CPU).out
    assert "CPUExecutionProvider: 1 nodes: MatMul 1\nmedian " in out
    assert " ms over 2 runs" in out


@pytest.mark.parametrize(("runs", "median", "p99"), [(1, 1, 1), (2, 1.5, 2), (3, 2, 3), (200, 100.5, 198)])
def test_timing(monkeypatch, runs, median, p99):
    ticks = iter(tick for length in range(1, runs + 1) for tick in (0, length * 1_000_000))
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(ticks))
    calls = []
    timing = time_runs(lambda: calls.append(1), runs=runs, warmup=4)
    assert timing == {"runs": runs, "median_ms": median, "p99_ms": p99}
    assert len(calls) == runs + 4


def test_saved_outputs_are_not_overwritten(matmul, ones, tmp_path):
    arguments = ("run", matmul, "--input", f"x={ones}", "--output", tmp_path / "out", *CPU)
    assert rocline(*arguments).status == 0
    saved = (tmp_path / "out/y.npy").read_bytes()
    np.save(ones, np.zeros((2, 4), np.float32))
    refused = rocline(*arguments)
    assert (refused.status, refused.out) == (1, "")
    assert refused.err == f"rocline: {tmp_path}/out/y.npy: exists, pass --force to overwrite it\n"
    assert (tmp_path / "out/y.npy").read_bytes() == saved
    assert rocline(*arguments, "--force").status == 0
    assert not np.load(tmp_path / "out/y.npy").any()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["y.npy"]


def test_nothing_is_left_of_outputs_that_cannot_be_saved(matmul, ones, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    result = rocline("run", matmul, "--input", f"x={ones}", "--output", tmp_path / "out/put", *CPU)
    assert result.err == f"rocline: {tmp_path}/out/put: cannot be written: No space left on device\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 1, "input 'x': missing, expected float32 (batch, 4)"),
        (["--input", "x"], 2, "'x', expected NAME=FILE"),
        (["--input", "x=none.npy"], 1, "input 'x': none.npy: no such file"),
        (["--random", "--dim", "seq=2"], 1, "--dim seq: unknown, the model has batch"),
        (["--random", "--dim", "batch=x"], 2, "'x', expected a whole number"),
        (["--random", "--shape", "z:2"], 1, "--shape z: unknown, the model has x"),
        (["--random", "--shape", "x:2x"], 2, "'2x', expected sizes as in 1x512"),
        (["--random", "--shape", "x:2x5"], 1, "input 'x': shape (2, 5), expected (batch, 4)"),
        (["--random", "--shape", "x:"], 1, "input 'x': shape (), expected 2 dimensions (batch, 4)"),
        (["--shape", "x:2x4"], 2, "add --random"),
        (["--random", "--provider", "gpu"], 1, "provider 'gpu': unknown, expected one of rocm, migraphx, cuda, cpu"),
        (["--random", "--option", "threads"], 2, "'threads', expected KEY=VALUE"),
        (["--random", "--option", "thread=1"], 2, "did you mean 'threads'"),
        (["--random", "--option", "memory_arena=2"], 2, "option 'memory_arena': '2', expected true or false"),
        (["--random", "--option", "use_tf32=1"], 1, "option 'use_tf32': belongs to cuda"),
        (["--random", "--threads", "-1"], 2, "--threads"),
        (["--random", "--device", "7", "--provider", "rocm", "--strict"], 1, "libamdhip64.so.7"),
        (["--random", "--verify"], 1, "nothing to verify against"),
    ],
)
def test_run_refuses(matmul, arguments, status, message):
    result = rocline("run", matmul, *arguments)
    assert (result.status, result.out) == (status, "")
    assert message in result.err
    assert "Traceback" not in result.err
    if status == 1:
        assert result.err.count("\n") <= 1 + ("cannot run here" in result.err)


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY"])
def test_what_is_no_array(matmul, tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    result = rocline("run", matmul, "--input", f"x={tmp_path}/x.npy", *CPU)
    assert result.status == 1
    assert result.err.startswith(f"rocline: input 'x': {tmp_path}/x.npy: no .npy or .npz file that can be read")
    assert result.err.count("\n") == 1


def test_an_array_of_python_objects_is_not_unpickled(matmul, tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    result = rocline("run", matmul, "--input", f"x={tmp_path}/x.npy", *CPU)
    assert (result.status, result.err.count("\n")) == (1, 1)


def test_verify(folder):
    for command in (["run", folder, "--random", *CPU], ["inspect", folder]):
        assert rocline(*command, "--verify").status == 0
    with (folder / "model.onnx").open("ab") as file:
        # A field that no reader of ONNX knows: the model still loads.
        file.write(b"\xf8\x7f\x01")
    for command in (["run", folder, "--random", *CPU], ["inspect", folder]):
        assert rocline(*command).status == 0
        result = rocline(*command, "--verify")
        assert (result.status, result.out) == (1, "")
        assert result.err.startswith(f"rocline: {folder}/model.onnx: SHA-256 is ")


def test_inspect_a_folder(folder):
    out = rocline("inspect", folder).out
    for part in (
        "hub someone/model at abc123",
        "Apache-2.0",
        "feature-extraction",
        "made for cpu, fp32, cache none",
        "torch 2.13.0",
        "a note",
        "opset ai.onnx 17",
        "x: float32 [batch, 4]",
        "y: float32 [batch, 3]",
        "48 bytes of float32",
        "1 nodes: MatMul 1",
        "model.onnx y: at most 1e-06, mean 1e-07 (bound 1e-05), against torch 2.13.0, 3 sentences",
        "bytes  model.onnx",
        "bytes  rocline.json",
    ):
        assert part in out
    document = json.loads(rocline("inspect", folder, "--json").out)
    assert document["manifest"]["source"]["licence"] == "Apache-2.0"
    assert document["models"]["model.onnx"]["operators"] == {"MatMul": 1}
    assert document["files"]["model.onnx"] == (folder / "model.onnx").stat().st_size


def test_inspect_a_bare_file(tmp_path):
    proto = small_models.model(
        [helper.make_node("AddScale", ["a", "a"], ["y"], domain="rocline")],
        [("a", TensorProto.FLOAT, ["n", None])],
        [("y", TensorProto.FLOAT, ["n", None])],
        opsets={"": 17, "rocline": 1},
    )
    path = small_models.save(proto, tmp_path)
    out = rocline("inspect", path).out
    assert "no rocline.json" in out
    assert "a: float32 [n, ?]" in out
    assert "custom operators: rocline::AddScale" in out


def test_inspect_gives_the_layers_of_a_cache_one_line(tmp_path):
    layers = [(f"past.{layer}.key", TensorProto.FLOAT, [1, 8 if layer == 2 else 4]) for layer in range(12)]
    proto = small_models.model(
        [helper.make_node("Identity", ["past.0.key"], ["y"])], layers, [("y", TensorProto.FLOAT, [1, 4])]
    )
    out = rocline("inspect", small_models.save(proto, tmp_path)).out
    assert "past.0..11.key: float32 [1, 4]" in out
    assert "past.2.key: float32 [1, 8]" in out
    assert out.count("past.") == 2


def test_inspect_several_files(tmp_path):
    for name in ("decoder.onnx", "encoder.onnx"):
        small_models.save(small_models.matmul(), tmp_path, name)
    document = json.loads(rocline("inspect", tmp_path, "--json").out)
    assert list(document["models"]) == ["decoder.onnx", "encoder.onnx"]
    result = rocline("run", tmp_path, "--random", *CPU)
    assert "several ONNX files (decoder.onnx, encoder.onnx): name one" in result.err
    assert rocline("run", tmp_path / "encoder.onnx", "--random", *CPU).status == 0


def test_inspect_needs_no_weights(tmp_path):
    path = small_models.with_external_data(tmp_path)
    assert json.loads(rocline("inspect", path, "--json").out)["models"]["model.onnx"]["external_tensors"] == 1
    (tmp_path / "model.onnx.data").unlink()
    result = rocline("inspect", path)
    assert result.status == 1
    assert "tensor 'w': external data 'model.onnx.data' is missing" in result.err


def damage(path):
    path.write_bytes(b"\x08\x08\x12\xff")


def later_format(path):
    manifest = path.parent / "rocline.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 2'))


def opset_too_new(path):
    proto = onnx.load(path)
    proto.opset_import[0].version = 99
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage, "truncated, damaged or not an ONNX model"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.unlink(), "model.onnx: missing, but listed in rocline.json"),
        (later_format, "format_version is 2, this rocline reads up to 1: upgrade rocline"),
        (lambda path: (path.parent / "rocline.json").write_text("{"), "not readable as JSON"),
        (opset_too_new, "opset 99 of ai.onnx, onnxruntime 1.22.2 loads up to 22"),
    ],
)
def test_a_harmed_folder(folder, tmp_path, harm, message):
    harm(folder / "model.onnx")
    result = rocline("run", folder, "--random", "--output", tmp_path / "out", *CPU)
    assert (result.status, result.out) == (1, "")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_doctor():
    result = rocline("doctor")
    assert (result.status, result.err) == (0, "")
    for part in ("Python ", "onnxruntime-rocm 1.22.2", "libamdhip64.so.7", "to mend it: ", "cpu          usable"):
        assert part in result.out
    assert result.out.endswith("A model runs now on CPUExecutionProvider\n")


def test_doctor_as_json():
    document = json.loads(rocline("doctor", "--json").out)
    states = {state["name"]: state for state in document["providers"]}
    assert list(states) == ["rocm", "migraphx", "cuda", "cpu"]
    assert states["cpu"] == {
        "name": "cpu", "ort_name": "CPUExecutionProvider", "usable": True, "reason": None, "fix": "",
    }  # fmt: skip
    assert not states["rocm"]["usable"]
    assert document["runs_now"] == ["CPUExecutionProvider"]
    assert document["problem"] is None


def test_doctor_without_onnxruntime(monkeypatch):
    monkeypatch.setattr(probe, "installed_packages", lambda: {"onnxruntime": "1", "onnxruntime-gpu": "2"})
    result = rocline("doctor")
    assert result.status == 1
    assert "onnxruntime 1, onnxruntime-gpu 2" in result.out
    assert "No model can run: onnxruntime and onnxruntime-gpu are both installed" in result.out


def test_doctor_on_a_machine_with_gpus(tmp_path):
    import fake_machine

    fake_machine.add_amd_gpus(tmp_path, 90402, 110000)
    (tmp_path / "dev/nvidia0").touch()
    version = tmp_path / "opt/rocm-7.2.4/.info/version"
    version.parent.mkdir(parents=True)
    version.write_text("7.2.4-66\n")
    fake_machine.write_library(tmp_path / "opt/rocm/lib/libamdhip64.so.7")
    found = doctor.diagnose(probe.Machine(tmp_path, {}))
    assert [(gpu.vendor, gpu.architecture) for gpu in found.gpus] == [
        ("amd", "gfx942"), ("amd", "gfx1100"), ("nvidia", ""),
    ]  # fmt: skip
    assert list(found.rocm.values()) == ["7.2.4"]
    assert found.hip_libraries == (str(tmp_path / "opt/rocm/lib/libamdhip64.so.7"),)
    text = doctor.as_text(found)
    assert "GPUs         amd gfx942, amd gfx1100, nvidia " in text
    assert "ROCm         7.2.4 in " in text
