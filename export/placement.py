"""Where ONNX Runtime is expected to run each node of a file on its target: predicted from kernel lists, not observed.

A GPU provider gets every node that it has a kernel for. Of those, ONNX Runtime leaves on the CPU what only computes
shapes: nodes whose inputs all come from a Shape, or are small constants or inputs of the graph (its
``GetCpuPreferredNodes``, for the ROCm and the CUDA provider alike). A prediction is about the file as it is: constants
that ONNX Runtime folds when it loads the file, and fusions of its own, come on top.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from rocline.export import element_types
from rocline.export.targets import Target

CPU = "CPUExecutionProvider"

# Kernels of the GPU providers that leave their output in host memory, and that read inputs there, by index.
_MAKES_HOST = frozenset({"Shape", "Size"})
_READS_HOST = {
    "Clip": {1, 2},
    "ConstantOfShape": {0},
    "CumSum": {1},
    "Expand": {1},
    "If": {0},
    "Loop": {0, 1},
    "OneHot": {1},
    "Pad": {1, 2, 3},
    "Range": {0, 1, 2},
    "ReduceL2": {1},
    "ReduceMax": {1},
    "ReduceMean": {1},
    "ReduceMin": {1},
    "ReduceSum": {1},
    "Reshape": {1},
    "Resize": {1, 2, 3},
    "Slice": {1, 2, 3, 4},
    "Split": {1},
    "Squeeze": {1},
    "Tile": {1},
    "TopK": {1},
    "Trilu": {1},
    "Unsqueeze": {1},
}
_SMALL_ELEMENTS = 100
_HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@dataclass(frozen=True)
class Placement:
    """What runs where.

    Attributes:
        nodes: provider -> operator -> how many nodes; those of ``shapes`` are not among them.
        shapes: operator -> how many nodes ONNX Runtime moves to the CPU because they only compute shapes.
    """

    nodes: dict[str, dict[str, int]]
    shapes: dict[str, int]


def predict(path: Path, target: Target) -> Placement:
    """Returns where the nodes of an ONNX file, subgraphs included, are expected to run on a target."""
    model = ir.load(path)
    element_types.infer(model)
    nodes: dict[str, Counter[str]] = {target.provider: Counter(), CPU: Counter()}
    shapes: Counter[str] = Counter()
    for graph in (model.graph, *model.graph.subgraphs()):
        own = {node for node in graph if node.op_type != "Constant" and _has_kernel(node, model.opset_imports, target)}
        moved = set() if target.provider == CPU or target.kernels is None else _only_shapes(graph, own)
        for node in graph:
            if node.op_type == "Constant":
                continue
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            if node in moved:
                shapes[name] += 1
            else:
                nodes[target.provider if node in own else CPU][name] += 1
    placed = {provider: dict(sorted(counts.items())) for provider, counts in nodes.items() if counts}
    return Placement(placed, dict(sorted(shapes.items())))


def _has_kernel(node: ir.Node, opsets: dict[str, int], target: Target) -> bool:
    schema = element_types.node_schema(node, opsets)
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.dtype is not None]
    types = frozenset(value.dtype.numpy().name for value in values if value.dtype is not None)
    version = schema.since if schema is not None and not node.domain else None
    return target.has_kernel(node.op_type, types, node.domain, version)


def _only_shapes(graph: ir.Graph, own: set[ir.Node]) -> set[ir.Node]:
    """Returns the nodes with a kernel of the provider that ONNX Runtime runs on the CPU all the same."""
    host: set[ir.Value] = set()
    moved: set[ir.Node] = set()
    for node in graph:
        if node in own and node.op_type in _MAKES_HOST:
            host.update(node.outputs)
            continue
        reached = any(value in host for value in node.inputs)
        if reached and (node not in own or _all_on_host(node, host)):
            host.update(node.outputs)
            if node in own:
                moved.add(node)
    return moved


def _all_on_host(node: ir.Node, host: set[ir.Value]) -> bool:
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if value.dtype in _HALVES:
            return False
        tensor = ir.convenience.get_const_tensor(value)
        if (tensor is not None and tensor.size <= _SMALL_ELEMENTS) or value.is_graph_input():
            continue
        if value not in host or index in _READS_HOST.get(node.op_type, ()):
            return False
    return True
