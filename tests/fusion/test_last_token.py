import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rocline.custom_ops.rewriting import MARKERS, Context
from rocline.export.passes.last_token import LastToken

VOCABULARY, WIDTH = 7, 4
POSITIONS = np.array([[3, 4, 5], [0, -1, -1], [-1, 8, 9]])
LAST = [2, 0, 2]


def model(*, transposed, reshaped):
    """A head behind a marked choice: MatMul of [B, 1, n], or Gemm of [B, n] between a Squeeze and an Unsqueeze."""
    weight = np.random.default_rng(0).standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
    constants = {"axis": np.array([1]), "weight": weight if transposed or reshaped else weight.T.copy()}
    nodes = [helper.make_node("LastToken", ["hidden", "position_ids"], ["last"], "last", domain=MARKERS)]
    if reshaped:
        nodes += [
            helper.make_node("Squeeze", ["last", "axis"], ["row"]),
            helper.make_node("Gemm", ["row", "weight"], ["product"], transB=1),
            helper.make_node("Unsqueeze", ["product", "axis"], ["logits"]),
        ]
    elif transposed:
        nodes += [
            helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["last", "turned"], ["logits"]),
        ]
    else:
        nodes.append(helper.make_node("MatMul", ["last", "weight"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "head",
        [
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["b", "t", WIDTH]),
            helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["b", "t"]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "t", VOCABULARY])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
        value_info=[
            helper.make_tensor_value_info("last", TensorProto.FLOAT, ["b", 1, WIDTH]),
            helper.make_tensor_value_info("row", TensorProto.FLOAT, ["b", WIDTH]),
        ],
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(MARKERS, 1)], ir_version=10
    )
    return ir.from_proto(proto), weight


@pytest.mark.parametrize("transposed, reshaped", [(False, False), (True, False), (False, True)])
def test_the_head_sees_the_last_position_alone_without_gather_nd(transposed, reshaped):
    graph, weight = model(transposed=transposed, reshaped=reshaped)
    context = Context(dtype="bf16", runs=lambda op, domain="": op != "GatherND", provider="CPUExecutionProvider")
    outcome = LastToken().apply(graph, context)
    ir.passes.common.RemoveUnusedNodesPass()(graph)
    assert (outcome.matched, outcome.refused) == (1, ())
    gather = ["Unsqueeze", "Expand", "GatherElements", "Squeeze"]
    product = "Gemm" if transposed or reshaped else "MatMul"
    assert [node.op_type for node in graph.graph] == ["Cast", "ArgMax", *gather, product, "Unsqueeze"]
    assert list(graph.graph.outputs[0].shape)[1:] == [1, VOCABULARY]

    hidden = np.random.default_rng(1).standard_normal((3, 3, WIDTH)).astype(np.float32)
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"hidden": hidden, "position_ids": POSITIONS})
    expected = hidden[np.arange(3), LAST] @ weight.T
    np.testing.assert_allclose(logits[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_a_choice_of_another_domain_is_left_alone():
    graph, _ = model(transposed=False, reshaped=False)
    graph.graph[0].domain = "elsewhere"
    context = Context(dtype="fp32", runs=lambda op, domain="": True, provider="CPUExecutionProvider")
    assert LastToken().apply(graph, context).matched == 0
    assert [node.op_type for node in graph.graph] == ["LastToken", "MatMul"]
