"""The table of what was fused, as `rocline export` and `rocline inspect` print it."""

import json
from dataclasses import asdict

import small_models
from command_line import rocline

from rocline.runtime import fusion_table, onnx_file
from rocline.runtime.manifest import Fusion, FusionRow, Manifest, OnnxModel, Source, hash_files

FUSION = {
    "model.onnx": Fusion(
        rows=(
            FusionRow("bidirectional attention", "CachedAttention", 12, {}),
            FusionRow("GELU", "BiasGelu", 2, {"its formula is not that of GELU": 3}),
            FusionRow("sampling head", "SampleToken", 0, {}),
        ),
        nodes_before=524,
        nodes_after=47,
        placement={
            "ROCMExecutionProvider": {"MatMul": 18, "rocline::CachedAttention": 12},
            "CPUExecutionProvider": {"Det": 1},
        },
        shapes={"Concat": 2, "Gather": 1},
    )
}
LINES = [
    "model.onnx: 524 nodes traced, 47 after fusion",
    "  rule                     times  result",
    "  bidirectional attention     12  CachedAttention",
    "  GELU                         2  BiasGelu",
    "  GELU                         3  not done: its formula is not that of GELU",
    "  expected on ROCMExecutionProvider: 30 nodes (MatMul 18, rocline::CachedAttention 12)",
    "  expected on CPUExecutionProvider: 1 node (Det 1)",
    "  expected on the CPU, since they only compute shapes: 3 nodes (Concat 2, Gather 1)",
]


def test_lines():
    assert fusion_table.lines({name: asdict(entry) for name, entry in FUSION.items()}) == LINES


def test_a_file_that_nothing_was_done_to():
    entry = Fusion(rows=(), nodes_before=3, nodes_after=3, placement={}, shapes={})
    assert fusion_table.lines({"model.onnx": asdict(entry)}) == ["model.onnx: 3 nodes traced, 3 after fusion"]


def test_inspect_shows_it_again(tmp_path):
    outline = onnx_file.read(small_models.save(small_models.matmul(), tmp_path))
    Manifest(
        source=Source("hub", "someone/model", None, None),
        task="feature-extraction",
        dtype="fp32",
        target="rocm",
        cache="none",
        models={"model.onnx": OnnxModel(outline.ir_version, outline.opsets, outline.inputs, outline.outputs)},
        custom_ops=None,
        tools={},
        files=hash_files(tmp_path),
        parity=(),
        fusion=FUSION,
    ).write(tmp_path)
    shown = rocline("inspect", tmp_path).out
    assert "\n".join(["fused at export", *(f"  {line}" for line in LINES)]) in shown
    found = json.loads(rocline("inspect", tmp_path, "--json").out)
    assert found["manifest"]["fusion"]["model.onnx"] == json.loads(json.dumps(asdict(FUSION["model.onnx"])))
