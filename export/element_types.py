"""The element type of every value of a graph, from the operators' schemas.

ONNX's own shape inference stops at the first operator of another domain; for element types the schemas are enough: an
output has the type of the input that shares its type variable, a fixed type, or one that an attribute gives.
"""

import functools
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from rocline import custom_ops
from rocline.export.targets import DTYPES

# Control flow passes values through its subgraphs; its schema's type variables tell nothing.
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
_TYPE_ATTRIBUTES = {"Cast": "to", "EyeLike": "dtype", "RandomNormal": "dtype", "RandomUniform": "dtype"}


@dataclass(frozen=True)
class Schema:
    """What an operator's schema says about element types.

    Attributes:
        since: the opset version that last changed the operator.
        inputs: the type variable (``T``) or fixed type (``tensor(float)``) of each formal input; the last may repeat.
        outputs: likewise.
        allowed: the types each type variable may stand for, e.g. ``{"T": {"tensor(float)", ...}}``.
    """

    since: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    allowed: dict[str, frozenset[str]]

    def input(self, index: int) -> str:
        """Returns the type variable or type of the actual input ``index``."""
        return self.inputs[min(index, len(self.inputs) - 1)]

    def output(self, index: int) -> str:
        """Returns the type variable or type of the actual output ``index``."""
        return self.outputs[min(index, len(self.outputs) - 1)]


@functools.cache
def schema(domain: str, op_type: str, opset: int) -> Schema | None:
    """Returns the schema of an operator at an opset; None where nobody here knows the operator."""
    import onnx

    if domain in ("", "ai.onnx"):
        try:
            found: Any = onnx.defs.get_schema(op_type, opset, "")
        except onnx.defs.SchemaError:
            return None
        return _schema(found, "type_str")
    if domain == custom_ops.DOMAIN:
        return _own(op_type)
    found = _contributed().get((domain, op_type))
    return _schema(found, "typeStr") if found else None


def takes(op_type: str, domain: str, dtype: str, opset: int) -> bool:
    """Tells whether an operator's schema, as it is known here, lets its first output be of a dtype (``bf16``, ...)."""
    found = schema(domain, op_type, opset)
    allowed = found.allowed.get(found.output(0)) if found is not None else None
    return allowed is None or _TENSORS[DTYPES[dtype]] in allowed


def _own(op_type: str) -> Schema | None:
    """Returns the schema of one of rocline's operators, from its spec."""
    spec = custom_ops.specs().get(op_type)
    if spec is None:
        return None
    return Schema(
        since=custom_ops.VERSION,
        inputs=tuple(_TENSORS.get(argument.dtype, argument.dtype) for argument in spec.inputs),
        outputs=tuple(_TENSORS.get(argument.dtype, argument.dtype) for argument in spec.outputs),
        allowed={"T": frozenset(_TENSORS[dtype] for dtype in spec.dtypes)},
    )


@functools.cache
def _contributed() -> dict[tuple[str, str], Any]:
    """Returns the schemas of the operators that ONNX Runtime adds."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    return {(found.domain, found.name): found for found in get_all_operator_schema() if found.domain}


def _schema(found: Any, type_field: str) -> Schema:
    return Schema(
        since=found.since_version,
        inputs=tuple(getattr(formal, type_field) for formal in found.inputs),
        outputs=tuple(getattr(formal, type_field) for formal in found.outputs),
        allowed={
            constraint.type_param_str: frozenset(constraint.allowed_type_strs) for constraint in found.type_constraints
        },
    )


def node_schema(node: ir.Node, opsets: dict[str, int]) -> Schema | None:
    """Returns the schema of a node's operator."""
    return schema(node.domain, node.op_type, opsets.get(node.domain, opsets.get("", 1)))


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """Returns the graphs that a control-flow node holds."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def infer(model: ir.Model) -> None:
    """Sets ``value.dtype`` wherever the schemas tell it; values that have one keep it."""
    _infer_graph(model.graph, model.opset_imports)


def _infer_graph(graph: ir.Graph, opsets: dict[str, int]) -> None:
    for value in graph.initializers.values():
        if value.dtype is None and value.const_value is not None:
            value.dtype = value.const_value.dtype
    for node in graph:
        inner = subgraphs(node)
        for branch in inner:
            _infer_graph(branch, opsets)
        for index, output in enumerate(node.outputs):
            if output.dtype is None:
                found = inner[0].outputs[index].dtype if node.op_type == "If" else _output_type(node, index, opsets)
                if found is not None:
                    output.dtype = found


def _output_type(node: ir.Node, index: int, opsets: dict[str, int]) -> ir.DataType | None:
    attribute = node.attributes.get(_TYPE_ATTRIBUTES.get(node.op_type, ""))
    if attribute is not None:
        return ir.DataType(attribute.as_int())
    if node.op_type in ("Constant", "ConstantOfShape"):
        tensor = node.attributes.get("value")
        return tensor.as_tensor().dtype if tensor is not None else _constant_type(node)
    known = node_schema(node, opsets)
    if known is None:
        return next((value.dtype for value in node.inputs if value is not None), None)
    wanted = known.output(index)
    for position, value in enumerate(node.inputs):
        if value is not None and value.dtype is not None and known.input(position) == wanted:
            return value.dtype
    only = known.allowed.get(wanted, frozenset({wanted}))
    return _FIXED.get(next(iter(only))) if len(only) == 1 else None


def _constant_type(node: ir.Node) -> ir.DataType | None:
    # ConstantOfShape without a value makes float zeros; Constant has its short forms.
    integers = any(name in node.attributes for name in ("value_int", "value_ints"))
    return ir.DataType.INT64 if integers else ir.DataType.FLOAT


# ONNX's names of the types that specs name as NumPy does.
_TENSORS = {
    "float32": "tensor(float)",
    **{name: f"tensor({name})" for name in ("float16", "bfloat16", "int32", "int64")},
}
_FIXED = {
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(double)": ir.DataType.DOUBLE,
    "tensor(bool)": ir.DataType.BOOL,
    "tensor(int32)": ir.DataType.INT32,
    "tensor(int64)": ir.DataType.INT64,
    "tensor(string)": ir.DataType.STRING,
    "tensor(uint8)": ir.DataType.UINT8,
}
