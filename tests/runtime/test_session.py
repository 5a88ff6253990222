"""Sessions: what runs where and why, what is refused, and what ONNX Runtime is kept from printing."""

import logging
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import small_models
from onnx import TensorProto, helper

import rocline
from rocline.errors import InputError, ModelError, ProviderError, RoclineError
from rocline.runtime import session as session_module
from rocline.runtime import startup
from rocline.runtime.ort_session import _listed_nodes
from rocline.runtime.probe import Probe

CPU, ROCM = "CPUExecutionProvider", "ROCMExecutionProvider"


@pytest.fixture
def matmul(tmp_path):
    return small_models.save(small_models.matmul(), tmp_path)


def test_runs_as_onnxruntime_does(matmul):
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    with rocline.Session(matmul, ["cpu"]) as session:
        assert [(s.name, s.dtype, s.shape) for s in session.inputs] == [("x", "float32", ("batch", 4))]
        assert [(s.name, s.dtype, s.shape) for s in session.outputs] == [("y", "float32", ("batch", 3))]
        assert (session.folder, session.manifest) == (matmul.parent, None)
        outputs = session.run({"x": x})
    raw = onnxruntime.InferenceSession(matmul, providers=[CPU]).run(None, {"x": x})
    assert list(outputs) == ["y"]
    assert np.array_equal(outputs["y"], raw[0])


def test_an_array_need_not_be_contiguous(matmul):
    x = np.asfortranarray(np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32))
    with rocline.Session(matmul, ["cpu"]) as session:
        plain = session.run({"x": np.ascontiguousarray(x)})["y"]
        assert np.array_equal(session.run({"x": x})["y"], plain)
        assert np.array_equal(session.run({"x": np.repeat(x, 2, axis=0)[::2]})["y"], plain)


def test_strings_pass(tmp_path):
    proto = small_models.model(
        [helper.make_node("Identity", ["s"], ["t"])],
        [("s", TensorProto.STRING, ["n"])],
        [("t", TensorProto.STRING, ["n"])],
    )
    with rocline.Session(small_models.save(proto, tmp_path), ["cpu"]) as session:
        texts = ["a", "bc", "\u00e9", "a\0b", ""]
        for array in (np.array(texts), np.array(texts, object)):
            assert session.run({"s": array})["t"].tolist() == texts


def test_some_of_the_outputs(tmp_path):
    nodes = [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"])]
    proto = small_models.model(
        nodes, [("x", TensorProto.FLOAT, [1])], [(name, TensorProto.FLOAT, [1]) for name in "ab"]
    )
    feeds = {"x": np.array([2], np.float32)}
    with rocline.Session(small_models.save(proto, tmp_path), ["cpu"]) as session:
        assert list(session.run(feeds)) == ["a", "b"]
        assert {name: array.item() for name, array in session.run(feeds, ["b"]).items()} == {"b": 2}
        for wanted in ["c"], [], "b":
            with pytest.raises(InputError, match="a, b"):
                session.run(feeds, wanted)


def test_inputs_are_checked_before_onnxruntime(tmp_path):
    with rocline.Session(small_models.save(small_models.two_inputs(), tmp_path), ["cpu"]) as session:
        feeds = {"input_ids": np.zeros((1, 8), np.int64), "attention_mask": np.zeros((1, 7), np.int64)}
        with pytest.raises(InputError) as caught:
            session.run(feeds)
    assert str(caught.value) == "input 'attention_mask': shape (1, 7), expected (1, 8) to match 'input_ids'"


def test_any_rank(tmp_path):
    proto = small_models.model(
        [helper.make_node("Relu", ["x"], ["y"])], [("x", TensorProto.FLOAT, None)], [("y", TensorProto.FLOAT, None)]
    )
    with rocline.Session(small_models.save(proto, tmp_path), ["cpu"]) as session:
        for shape in ((), (3,), (1, 2, 3)):
            assert session.run({"x": np.ones(shape, np.float32)})["y"].shape == shape


def test_an_initializer_may_be_overridden(tmp_path):
    proto = small_models.matmul()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    x = np.ones((1, 4), np.float32)
    with rocline.Session(small_models.save(proto, tmp_path), ["cpu"]) as session:
        assert [spec.name for spec in session.inputs] == ["x"]
        assert session.run({"x": x})["y"].tolist() == [[18, 22, 26]]
        assert session.run({"x": x, "w": np.ones((4, 3), np.float32)})["y"].tolist() == [[4, 4, 4]]


def test_a_failing_run_is_one_line(tmp_path, capfd):
    proto = small_models.model(
        [helper.make_node("MatMul", ["a", "b"], ["y"], name="product")],
        [("a", TensorProto.FLOAT, ["m", "k"]), ("b", TensorProto.FLOAT, ["l", "n"])],
        [("y", TensorProto.FLOAT, ["m", "n"])],
    )
    session = rocline.Session(small_models.save(proto, tmp_path), ["cpu"])
    with pytest.raises(RoclineError) as caught:
        session.run({"a": np.ones((2, 3), np.float32), "b": np.ones((2, 3), np.float32)})
    assert str(caught.value) == f"{tmp_path}/model.onnx: run failed: MatMul node 'product': MatMul dimension mismatch"
    assert capfd.readouterr() == ("", "")


def test_close(matmul):
    session = rocline.Session(matmul, ["cpu"])
    session.close()
    session.close()
    for use in (lambda: session.run({"x": np.ones((1, 4), np.float32)}), lambda: session.ort):
        with pytest.raises(RoclineError, match="the session is closed"):
            use()


def test_options_reach_onnxruntime(matmul):
    options = {"threads": 1, "memory_arena": False, "graph_optimization": "basic"}
    with rocline.Session(matmul, ["cpu"], options=options) as session:
        config = session.ort.get_session_options()
        assert config.intra_op_num_threads == 1
        assert config.enable_cpu_mem_arena is False
        assert config.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"providers": ["gpu"]}, ProviderError, "provider 'gpu': unknown"),
        ({"providers": ["cpu"], "options": {"use_tf32": True}}, InputError, "belongs to cuda"),
        ({"options": {"threads": "2"}}, InputError, "option 'threads': '2', expected a whole number"),
        ({"device_id": -1}, InputError, "device_id: -1"),
        ({"verify": True}, ModelError, "nothing to verify against"),
        ({"stream": 0x7F00}, InputError, "stream: 32512, expected a Session or a Stream"),
    ],
)
def test_wrong_arguments(matmul, arguments, error, message):
    with pytest.raises(error, match=message):
        rocline.Session(matmul, **arguments)


def test_a_stream_is_not_ignored(matmul):
    with rocline.Session(matmul, ["cpu"]) as session:
        for stream in (session, session.stream):
            with pytest.raises(
                InputError, match=r"stream 0x0 on cpu:0 was given, but no provider .* takes one \(cpu\)"
            ):
                rocline.Session(matmul, ["cpu"], stream=stream)
        # Where the GPU is left out, with the reason, so is its stream.
        with rocline.Session(matmul, ["rocm"], stream=session) as fallen_back:
            assert fallen_back.report.active == (CPU,)
            assert fallen_back.stream is not session.stream


def test_cpu_alone_is_no_fallback(matmul, caplog):
    with rocline.Session(matmul, ["cpu"], strict=True) as session:
        assert session.report.requested == session.report.active == (CPU,)
        assert session.report.fallbacks == ()
    assert not caplog.records


def test_rocm_first_says_why_the_cpu_runs(matmul, caplog):
    with rocline.Session(matmul) as session:
        report = session.report
    assert (report.requested, report.active) == ((ROCM, CPU), (CPU,))
    (fallback,) = report.fallbacks
    assert fallback.provider == ROCM
    assert "libamdhip64.so.7" in fallback.reason
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("rocline", logging.WARNING)
    line = record.getMessage()
    assert "\n" not in line
    for part in (ROCM, CPU, fallback.reason, fallback.fix):
        assert part in line


@pytest.mark.parametrize("providers", [None, ["rocm"], ["rocm", "cpu"], ["cpu", ROCM]])
def test_strict_fails_with_the_same_reason(matmul, providers, caplog):
    with pytest.raises(ProviderError) as caught:
        rocline.Session(matmul, providers, strict=True)
    reason = rocline.Session(matmul, providers).report.fallbacks[0].reason
    assert reason in str(caught.value)


def test_a_provider_that_onnxruntime_drops_is_a_fallback(matmul, monkeypatch, capfd):
    """As where a probe misses something: ONNX Runtime is asked, fails to load the provider, and only logs it."""
    monkeypatch.setattr(session_module.probe, "probe", lambda provider, *_, **__: Probe(provider))
    monkeypatch.setattr(startup, "_first_with_stream", lambda _: None)
    with rocline.Session(matmul) as session:
        (fallback,) = session.report.fallbacks
        assert session.report.active == (CPU,)
        assert session.report.placement == {CPU: {"MatMul": 1}}
    assert fallback.provider == ROCM
    assert "cannot open shared object file" in fallback.reason
    with pytest.raises(ProviderError, match="cannot open shared object file"):
        rocline.Session(matmul, strict=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    # One line of logging's own last resort, and nothing of ONNX Runtime's.
    assert captured.err.count("\n") <= 1
    assert "onnxruntime:" not in captured.err


def test_a_device_that_does_not_initialise_is_a_fallback(matmul, monkeypatch):
    """As where a probe misses something, and the device's runtime cannot be loaded or has no device."""
    monkeypatch.setattr(session_module.probe, "probe", lambda provider, *_, **__: Probe(provider))
    with rocline.Session(matmul) as session:
        (fallback,) = session.report.fallbacks
        assert session.report.active == (CPU,)
        assert session.run({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[18, 22, 26]]
    assert fallback.provider == ROCM
    assert "libamdhip64.so.7 not found" in fallback.reason
    with pytest.raises(ProviderError, match=r"strict: ROCMExecution.* libamdhip64"):
        rocline.Session(matmul, strict=True)


def test_a_dropped_provider_leaves_a_bfloat16_model_widened(tmp_path, monkeypatch):
    monkeypatch.setattr(session_module.probe, "probe", lambda provider, *_, **__: Probe(provider))
    proto = small_models.model(
        [helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16), helper.make_node("Cast", ["b"], ["y"], to=1)],
        [("x", TensorProto.FLOAT, [1])],
        [("y", TensorProto.FLOAT, [1])],
    )
    with rocline.Session(small_models.save(proto, tmp_path)) as session:
        # A third is no bfloat16 number, so a Cast to it would show.
        third = np.array([1 / 3], np.float32)
        assert session.run({"x": third})["y"] == third
        assert "widened" in session.report.notes[0]


CHILD = """
import sys, numpy, rocline
session = rocline.Session(sys.argv[1])
session.run({"x": numpy.ones((1, 4), "float32")})
assert session.report.placement
"""


def test_a_child_process_prints_one_line(matmul):
    ran = subprocess.run([sys.executable, "-c", CHILD, matmul], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "")
    (line,) = ran.stderr.splitlines()
    assert "libamdhip64.so.7" in line
    assert "onnxruntime:" not in line


def test_onnxruntime_speaks_to_the_logger(tmp_path, caplog, capfd):
    proto = small_models.matmul()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    path = small_models.save(proto, tmp_path)
    rocline.Session(path, ["cpu"])
    assert not caplog.records
    caplog.set_level(logging.DEBUG, "rocline")
    rocline.Session(path, ["cpu"])
    (record,) = caplog.records
    assert record.getMessage().startswith("onnxruntime: Initializer w appears in graph inputs")
    assert capfd.readouterr() == ("", "")


def test_placement_counts_the_nodes_of_the_optimised_graph(tmp_path, capfd):
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Neg", ["b"], ["c"]),
        helper.make_node("Softmax", ["c"], ["y"]),
    ]
    proto = small_models.model(nodes, [("x", TensorProto.FLOAT, [2])], [("y", TensorProto.FLOAT, [2])])
    before = sorted(tmp_path.iterdir())
    path = small_models.save(proto, tmp_path)
    with rocline.Session(path, ["cpu"]) as session:
        assert session.report.placement == {CPU: {"Neg": 2, "Softmax": 1}}
    with rocline.Session(path, ["cpu"], options={"graph_optimization": "disable"}) as session:
        assert session.report.placement == {CPU: {"Neg": 2, "Identity": 1, "Softmax": 1}}
    assert sorted(tmp_path.iterdir()) == [*before, path]
    assert capfd.readouterr() == ("", "")


def test_placement_on_two_providers():
    """The lines that ONNX Runtime 1.22 logs for a session with nodes on both."""
    log = [
        "Node placements",
        " Node(s) placed on [ROCMExecutionProvider]. Number of nodes: 3",
        "  MatMul (first)",
        "  MatMul (name (with) brackets)",
        "  Add ()",
        " Node(s) placed on [CPUExecutionProvider]. Number of nodes: 1",
        "  Shape (s)",
        "  Not (a node)",
    ]
    assert _listed_nodes(log) == {ROCM: {"MatMul": 2, "Add": 1}, CPU: {"Shape": 1}}


def rewritten(change):
    def build(tmp_path):
        proto = small_models.matmul()
        change(proto)
        return small_models.save(proto, tmp_path)

    return build


def damaged(content):
    def build(tmp_path):
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        return path

    return build


def set_opset(version, domain=""):
    def change(proto):
        del proto.opset_import[:]
        proto.opset_import.append(helper.make_opsetid(domain, version))

    return change


def unknown_operator(proto):
    proto.graph.node[0].op_type = "MatMulPlus"


def unknown_domain(proto):
    proto.graph.node[0].domain = "elsewhere"
    proto.opset_import.append(helper.make_opsetid("elsewhere", 1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (damaged(b""), "the file is empty"),
        (damaged(np.random.default_rng(0).bytes(1000)), "not an ONNX model"),
        (damaged(small_models.matmul().SerializeToString()[:-5]), "truncated"),
        (rewritten(lambda proto: setattr(proto, "ir_version", 99)), "IR version 99, onnxruntime 1.22.2 loads up to 10"),
        (rewritten(set_opset(99)), "opset 99 of ai.onnx, onnxruntime 1.22.2 loads up to 22"),
        (rewritten(unknown_operator), "MatMulPlus"),
        (rewritten(unknown_domain), "elsewhere:MatMul"),
        (lambda tmp_path: tmp_path, "no .onnx file in this folder"),
        (lambda tmp_path: tmp_path / "none.onnx", "no such file or folder"),
    ],
)
def test_a_model_that_cannot_be_loaded(tmp_path, build, message, capfd):
    path = build(tmp_path)
    with pytest.raises(ModelError) as caught:
        rocline.Session(path, ["cpu"])
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "/root/" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_external_data(tmp_path):
    path = small_models.with_external_data(tmp_path)
    x = np.ones((1, 4), np.float32)
    with rocline.Session(path, ["cpu"]) as session:
        assert session.run({"x": x})["y"].tolist() == [[18, 22, 26]]
        assert session.report.placement == {CPU: {"MatMul": 1}}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"tensor 'w': external data 'model.onnx.data' is missing"):
        rocline.Session(path, ["cpu"])


def test_custom_operators_are_registered(tmp_path, monkeypatch):
    proto = small_models.model(
        [helper.make_node("AddScale", ["a", "b"], ["y"], domain="rocline", scale=2.0)],
        [("a", TensorProto.FLOAT, [3]), ("b", TensorProto.FLOAT, [3])],
        [("y", TensorProto.FLOAT, [3])],
        opsets={"": 17, "rocline": 1},
    )
    path = small_models.save(proto, tmp_path)
    feeds = {name: np.array([1, 2, 3], np.float32) for name in "ab"}
    # Twice in one process, and once more for the placement.
    for _ in range(2):
        with rocline.Session(path, ["cpu"]) as session:
            assert session.run(feeds)["y"].tolist() == [4, 8, 12]
            assert session.report.placement == {CPU: {"AddScale": 1}}
    monkeypatch.setenv("ROCLINE_OPS_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(RoclineError, match=r"needs rocline's custom operators: .*none\.so"):
        rocline.Session(path, ["cpu"])
