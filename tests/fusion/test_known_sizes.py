"""Sizes that are known although the tracer computes them, and the shapes that are known because of that."""

import numpy as np
import onnx_ir as ir
import pytest
from exported import traced
from graph_rules import model, operators, rewrite, run

from rocline.export import fitting, parity, random_models, targets
from rocline.export.passes.idle_nodes import IdleReshapes
from rocline.export.passes.known_sizes import KnownSizes

SIZES = """
    shape = Shape(x)
    one = Constant <value_int = 1> ()
    first = Constant <value_ints = [0]> ()
    n = Gather(shape, one)
    length = Unsqueeze(n, first)
"""


def widened(joined, absent=-1, instead=1):
    """A row expanded to a shape that PyTorch guards against -1."""
    return model(
        f"""
        graph (float[b, n] x, int64[1] given) => (float[p, q] y)
        {{
            {SIZES}
            rows = Constant <value_ints = [{absent}]> ()
            joined = Concat <axis = 0> ({joined})
            whole = Constant <value_ints = [-1]> ()
            sizes = Reshape(joined, whole)
            other = Constant <value_ints = [{absent}, {absent}]> ()
            missing = Equal(sizes, other)
            ones = Constant <value_ints = [{instead}, {instead}]> ()
            target = Where(missing, ones, sizes)
            row = Constant <value_floats = [2.0]> ()
            wide = Expand(row, target)
            y = Neg(wide)
        }}"""
    )


def known(proto):
    """The model after the pass, and the shapes of its values by name."""
    loaded = ir.from_proto(proto)
    KnownSizes().apply(loaded, None)
    return loaded, {value.name: str(value.shape) for node in loaded.graph for value in node.outputs}


@pytest.mark.parametrize(("joined", "shape"), [("rows, length", "[1,n]"), ("length, length", "[n,n]")])
def test_what_a_value_is_expanded_to_is_known(joined, shape):
    before = widened(joined)
    after, _ = rewrite(before)
    assert {"Where", "Equal"}.isdisjoint(operators(after))
    loaded, shapes = known(before)
    assert shapes["wide"] == shape
    given = {"x": np.zeros((2, 5), np.float32), "given": np.array([3])}
    np.testing.assert_array_equal(run(after, **given)["y"], run(before, **given)["y"])
    assert loaded.graph.outputs[0].name == "y"


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param({"joined": "given, length"}, id="a number of the input"),
        pytest.param({"joined": "rows, length", "absent": -2}, id="another number is replaced"),
        pytest.param({"joined": "rows, length", "instead": 3}, id="another number replaces it"),
    ],
)
def test_a_guard_that_may_do_something_stays(parts):
    before = widened(**parts)
    loaded, _ = known(before)
    assert "Where" in [node.op_type for node in loaded.graph]
    given = {"x": np.zeros((2, 5), np.float32), "given": np.array([-1])}
    np.testing.assert_array_equal(run(ir.to_proto(loaded), **given)["y"], run(before, **given)["y"])


@pytest.mark.parametrize(("start", "step", "shape"), [(0, 1, "[n]"), (1, 1, None), (0, 2, None)])
def test_a_range_up_to_a_size_is_as_long(start, step, shape):
    _, shapes = known(
        model(
            f"""
            graph (float[b, n] x) => (int64[m] y)
            {{
                {SIZES}
                start = Constant <value_int = {start}> ()
                step = Constant <value_int = {step}> ()
                places = Range(start, n, step)
                y = Neg(places)
            }}"""
        )
    )
    assert (shapes["places"] == "[n]") == (shape == "[n]")


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ("zero, length, axis", ["Neg"]),
        ("zero, length, axis, one1", ["Neg"]),
        ("one1, length, axis", ["Shape", "Gather", "Unsqueeze", "Slice", "Neg"]),
        ("zero, length, other_axis", ["Shape", "Gather", "Unsqueeze", "Slice", "Neg"]),
        ("zero, length, axis, two", ["Shape", "Gather", "Unsqueeze", "Slice", "Neg"]),
        ("zero, given, axis", ["Slice", "Neg"]),
    ],
)
def test_a_slice_that_cuts_nothing_goes(arguments, left):
    before = model(
        f"""
        graph (float[b, n] x, int64[1] given) => (float[p, q] y)
        <int64[1] zero = {{0}}, int64[1] one1 = {{1}}, int64[1] two = {{2}}, int64[1] axis = {{1}},
         int64[1] other_axis = {{0}}>
        {{
            {SIZES}
            cut = Slice(x, {arguments})
            y = Neg(cut)
        }}"""
    )
    after, _ = rewrite(before, IdleReshapes())
    assert operators(after) == left
    given = {"x": np.arange(10, dtype=np.float32).reshape(2, 5), "given": np.array([3])}
    np.testing.assert_array_equal(run(after, **given)["y"], run(before, **given)["y"])


BART = {
    "model_type": "bart",
    "architectures": ["BartForConditionalGeneration"],
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}


def test_every_layer_of_bart_knows_the_padding_by_positions(tmp_path):
    """Its masks are cut to the number of keys, which is known to be all of them."""
    random_models.build(BART, 0, tmp_path / "source")
    bart = traced(tmp_path, "text2text-generation")
    for path in bart.files.values():
        fitting.fuse(path, bart.model.config, targets.load("rocm"), "fp32")
    nodes = list(ir.load(bart.files["encoder_model.onnx"]).graph)
    attentions = [node for node in nodes if node.op_type == "CachedAttention"]
    assert [len(node.inputs) for node in attentions] == [4, 4, 4]
    assert len({node.inputs[3] for node in attentions}) == 1
    assert "LayerNormalization" not in {node.op_type for node in nodes}
    parity.measure(
        bart.files,
        bart.cases(),
        bound=1e-4,
        against="torch",
        inputs="",
        target=targets.load("rocm"),
        torch_model=bart.model,
    )
