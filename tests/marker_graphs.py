"""Small marked graphs: written down as nodes, run in NumPy as they are, and in ONNX Runtime after a rule."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import marker_operators
import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from rocline.custom_ops.rewriting import MARKERS, Context, Outcome, Rule
from rocline.export import parity, passes, targets
from rocline.export.passes import idle_nodes, known_sizes, tidying

_MARKERS = {"RmsNorm", "RotaryTable", "Rotary", "CacheAppend", "Attention", "Activation", "LastToken"}
_DTYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}


@dataclass(frozen=True)
class Graph:
    """A marked graph and what to feed it; shapes name their symbolic axes."""

    model: onnx.ModelProto
    feeds: dict[str, Any]


def graph(
    nodes: list[tuple[Any, ...]],
    inputs: dict[str, tuple[Any, list[int | str]]],
    outputs: dict[str, list[int | str]],
    constants: dict[str, Any] | None = None,
    values: dict[str, list[int | str]] | None = None,
) -> Graph:
    """Makes a graph.

    Args:
        nodes: (operator, inputs, outputs[, attributes]); an operator that is a marker is one.
        inputs: name -> (array to feed, shape).
        outputs: name -> shape.
        constants: name -> array.
        values: name -> shape, of values inside that the tracer tells it of.
    """
    made = [
        helper.make_node(op, ins, outs, f"node_{index}", domain=MARKERS if op in _MARKERS else "", **dict(*more))
        for index, (op, ins, outs, *more) in enumerate(nodes)
    ]
    proto = helper.make_graph(
        made,
        "graph",
        [helper.make_tensor_value_info(name, _DTYPES[array.dtype], shape) for name, (array, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
        value_info=[
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (values or {}).items()
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MARKERS, 1)]
    model = helper.make_model(proto, opset_imports=opsets, ir_version=10)
    return Graph(model, {name: array for name, (array, _) in inputs.items()})


@dataclass(frozen=True)
class Lowered:
    """A graph after rules.

    Attributes:
        outcomes: of the rules, in order.
        operators: how many nodes of each operator there are.
        nodes: by operator, in order.
        model: the graph.
    """

    outcomes: list[Outcome]
    model: ir.Model

    @property
    def operators(self) -> dict[str, int]:
        return dict(Counter(node.op_type for node in self.model.graph))

    def nodes(self, op_type: str) -> list[ir.Node]:
        return [node for node in self.model.graph if node.op_type == op_type]

    def attributes(self, op_type: str) -> dict[str, Any]:
        (node,) = self.nodes(op_type)
        return {name: attribute.value for name, attribute in node.attributes.items()}


def context(target: str = "rocm", dtype: str = "fp32") -> Context:
    """What rules may know, for a target."""
    return passes.context_for(targets.load(target), dtype)


def sampling(given: Context) -> Context:
    """The same, where a sampling head is asked for."""
    return replace(given, sampling_head=True)


def apply(marked: Graph, *rules: Rule, given: Context | None = None) -> Lowered:
    """Runs rules over a graph whose shapes are known, as the pipeline does."""
    model = ir.from_proto(marked.model)
    first = (idle_nodes.IdleNodes(), known_sizes.KnownSizes())
    outcomes = passes.apply(model, (*first, *rules, tidying.Tidy()), given or context())
    return Lowered(outcomes[len(first) : -1], model)


def serialized(lowered: Lowered) -> bytes:
    """Returns the lowered graph's ONNX file."""
    return bytes(ir.to_proto(lowered.model).SerializeToString())


def deviation(marked: Graph, lowered: Lowered, tmp_path: Any) -> dict[str, float]:
    """Returns how far each output of the lowered graph is from the marked one's."""
    onnx.save(marked.model, tmp_path / "marked.onnx")
    ir.save(lowered.model, tmp_path / "lowered.onnx")
    evaluator = marker_operators.evaluator(tmp_path / "marked.onnx")
    expected = dict(zip(evaluator.output_names, evaluator.run(None, marked.feeds), strict=True))
    with ExitStack() as stack:
        session = parity.open_session(tmp_path / "lowered.onnx", stack)
        got = dict(zip([out.name for out in session.get_outputs()], session.run(None, marked.feeds), strict=True))
    assert {name: array.shape for name, array in got.items()} == {n: a.shape for n, a in expected.items()}
    return {name: float(np.abs(got[name] - array).max()) for name, array in expected.items()}
