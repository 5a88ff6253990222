"""The outline of a model file equals what the onnx package reads, and damage is told in one line."""

from collections import Counter

import numpy as np
import onnx
import pytest
import small_models
from onnx import TensorProto, helper, numpy_helper

from rocline.errors import ModelError
from rocline.runtime import onnx_file
from rocline.runtime.manifest import TensorSpec

REAL = {
    "silero": ("silero-vad", "silero_vad/data/silero_vad.onnx"),
    "rapidocr": ("rapidocr", "rapidocr/models/PP-OCRv6_det_small.onnx"),
    "magika": ("magika", "magika/models/standard_v3_3/model.onnx"),
}


def count_nodes(graph, counts):
    for node in graph.node:
        counts[node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"] += 1
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                count_nodes(subgraph, counts)
    return counts


@pytest.mark.parametrize("name", REAL)
def test_real_models_as_onnx_reads_them(name):
    path = small_models.package_file(*REAL[name])
    outline, model = onnx_file.read(path), onnx.load(path)
    assert outline.ir_version == model.ir_version
    assert outline.opsets == {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    assert outline.operators == count_nodes(model.graph, Counter())
    initializers = {tensor.name for tensor in model.graph.initializer}
    assert [spec.name for spec in outline.inputs] == [i.name for i in model.graph.input if i.name not in initializers]
    assert [spec.name for spec in outline.outputs] == [output.name for output in model.graph.output]
    assert not outline.external
    assert not outline.bfloat16


def test_interface(tmp_path):
    proto = small_models.model(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["s"], ["t"])],
        [("x", TensorProto.FLOAT16, ["batch", 3, None]), ("s", TensorProto.STRING, [])],
        [("y", TensorProto.FLOAT16, None), ("t", TensorProto.STRING, [])],
    )
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -1
    outline = onnx_file.read(small_models.save(proto, tmp_path))
    assert outline.inputs == (TensorSpec("x", "float16", ("batch", "?", "?")), TensorSpec("s", "string", ()))
    assert outline.outputs[0] == TensorSpec("y", "float16", onnx_file.ANY_RANK)


def test_an_initializer_is_no_input(tmp_path):
    proto = small_models.matmul()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    outline = onnx_file.read(small_models.save(proto, tmp_path))
    assert [spec.name for spec in outline.inputs] == ["x"]
    assert outline.weight_bytes == {"float32": 48}


def cast_in_subgraph():
    branch = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16), helper.make_node("Cast", ["b"], ["o"], to=1)],
        "branch",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    inputs = [("x", TensorProto.FLOAT, [2]), ("c", TensorProto.BOOL, [])]
    return small_models.model([node], inputs, [("y", TensorProto.FLOAT, [2])])


def constant_node():
    value = helper.make_tensor("v", TensorProto.BFLOAT16, [1], [1.0])
    nodes = [helper.make_node("Constant", [], ["c"], value=value), helper.make_node("Cast", ["c"], ["y"], to=1)]
    return small_models.model(nodes, [], [("y", TensorProto.FLOAT, [1])])


def bfloat16_input():
    node = helper.make_node("Cast", ["x"], ["y"], to=1)
    return small_models.model([node], [("x", TensorProto.BFLOAT16, [2])], [("y", TensorProto.FLOAT, [2])])


@pytest.mark.parametrize("build", [cast_in_subgraph, constant_node, bfloat16_input])
def test_bfloat16_is_seen_wherever_it_is(tmp_path, build):
    assert onnx_file.read(small_models.save(build(), tmp_path)).bfloat16


def test_other_domains_and_functions(tmp_path):
    proto = small_models.model(
        [helper.make_node("Twice", ["x"], ["y"], domain="mine")],
        [("x", TensorProto.FLOAT, [2])],
        [("y", TensorProto.FLOAT, [2])],
        opsets={"": 17, "mine": 3},
    )
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    proto.functions.append(helper.make_function("mine", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    outline = onnx_file.read(small_models.save(proto, tmp_path))
    assert outline.opsets == {"ai.onnx": 17, "mine": 3}
    assert outline.operators == {"mine::Twice": 1, "Add": 1}


def test_outputs_that_no_input_reaches(tmp_path):
    """Through a subgraph, too, that reads what is outside of it; a shape depends on no value."""
    float32, weight = TensorProto.FLOAT, helper.make_tensor("w", TensorProto.FLOAT, [2], [1, 2])
    inside = helper.make_graph(
        [helper.make_node("Neg", ["reached"], ["inner"])],
        "then",
        [],
        [helper.make_tensor_value_info("inner", float32, [2])],
    )
    nodes = [
        helper.make_node("Abs", ["x"], ["reached"]),
        helper.make_node("If", ["flag"], ["branched"], then_branch=inside, else_branch=inside),
        helper.make_node("Constant", [], ["flag"], value=helper.make_tensor("f", TensorProto.BOOL, [], [True])),
        helper.make_node("Neg", ["w"], ["folded"]),
        helper.make_node("Clip", ["w", "", "limit"], ["clipped"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["size"], to=float32),
        helper.make_node("Add", ["folded", "x"], ["both"]),
    ]
    names = ("x", "reached", "branched", "flag", "folded", "clipped", "shape", "size", "both", "w")
    outputs = [(name, float32, [2]) for name in names]
    limit = helper.make_tensor("limit", float32, [], [1])
    proto = small_models.model(nodes, [("x", float32, [2])], outputs, [weight, limit])
    found = onnx_file.read(small_models.save(proto, tmp_path))
    assert found.constants == ("flag", "folded", "clipped", "shape", "size", "w")


def test_every_cut_is_noticed_or_harmless(tmp_path):
    content = small_models.two_inputs().SerializeToString()
    for length in range(len(content)):
        path = tmp_path / "cut.onnx"
        path.write_bytes(content[:length])
        try:
            onnx_file.read(path)
        except ModelError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
        else:
            # Protobuf itself cannot tell: the cut fell between two fields of the outermost message.
            onnx.load_model_from_string(content[:length])


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes(tmp_path, seed):
    path = tmp_path / "noise.onnx"
    path.write_bytes(np.random.default_rng(seed).bytes(4096))
    with pytest.raises(ModelError, match="not an ONNX model"):
        onnx_file.read(path)


def test_empty_and_missing(tmp_path):
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ModelError, match="the file is empty"):
        onnx_file.read(tmp_path / "empty.onnx")
    with pytest.raises(ModelError, match="no such file"):
        onnx_file.read(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="cannot be read"):
        onnx_file.read(tmp_path)


def test_external_data(tmp_path):
    path = small_models.with_external_data(tmp_path)
    outline = onnx_file.read(path)
    (tensor,) = outline.external
    assert (tensor.name, tensor.location, tensor.offset, tensor.size) == ("w", "model.onnx.data", 0, 48)
    onnx_file.check_external(path, outline)


def test_external_data_in_a_constant_node(tmp_path):
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    onnx.external_data_helper.set_external_data(tensor, "weights.bin")
    tensor.ClearField("raw_data")
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    path = small_models.save(small_models.model([node], [], [("y", TensorProto.FLOAT, [4])]), tmp_path)
    with pytest.raises(ModelError, match=r"tensor 'w': external data 'weights.bin' is missing, expected .* 16 bytes"):
        onnx_file.check_external(path, onnx_file.read(path))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../model.onnx.data"}, "points outside"),
        ({"location": "/etc/hostname"}, "points outside"),
        ({"location": ""}, "points outside"),
        ({"location": "."}, "points outside"),
        ({"location": "link"}, "points outside"),
        ({"location": "none.bin"}, "is missing, expected a file with 48 bytes for it"),
        ({"offset": 16}, "has 48 bytes, expected 48 bytes at offset 16"),
        ({"length": 44}, "is given as 44 bytes, expected 48 from its dtype and shape"),
        ({"offset": "-1"}, "offset of its external data is '-1', expected a number"),
    ],
)
def test_external_data_that_cannot_be_used(tmp_path, entries, message):
    folder = tmp_path / "model"
    folder.mkdir()
    path = small_models.with_external_data(folder)
    (tmp_path / "model.onnx.data").write_bytes(bytes(48))
    (folder / "link").symlink_to(tmp_path / "model.onnx.data")
    small_models.point_elsewhere(path, **entries)
    with pytest.raises(ModelError, match=message) as caught:
        onnx_file.check_external(path, onnx_file.read(path))
    assert "tensor 'w'" in str(caught.value)


def test_external_data_cut_short(tmp_path):
    path = small_models.with_external_data(tmp_path)
    (tmp_path / "model.onnx.data").write_bytes(bytes(40))
    with pytest.raises(
        ModelError, match=r"tensor 'w': .*'model.onnx.data' has 40 bytes, expected 48 bytes at offset 0"
    ):
        onnx_file.check_external(path, onnx_file.read(path))


def test_link_inside_the_folder_is_fine(tmp_path):
    path = small_models.with_external_data(tmp_path)
    (tmp_path / "model.onnx.data").rename(tmp_path / "blob")
    (tmp_path / "model.onnx.data").symlink_to("blob")
    onnx_file.check_external(path, onnx_file.read(path))
