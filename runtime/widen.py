"""Turns a bfloat16 model into a float32 one, in memory: ONNX Runtime's CPU provider has no bfloat16 MatMul, Add or Mul.

Every bfloat16 number is a float32 number (its upper half), so weights keep their values; what changes is that results
are no longer rounded to bfloat16 on the way.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

_TYPE_ATTRIBUTES = ("to", "dtype")


def load_widened(path: Path) -> bytes:
    """Reads a model with its external data, widens it, and returns it serialised."""
    model = onnx.load(path)
    widen_bfloat16(model)
    content: bytes = model.SerializeToString()
    return content


def widen_bfloat16(model: ModelProto) -> None:
    """Turns every bfloat16 tensor, value and Cast of ``model`` into float32, in place.

    External data must be loaded. Subgraphs and the model's own functions are included.
    """
    _widen_graph(model.graph)
    for function in model.functions:
        _widen_nodes(function.node)
        _widen_values(function.value_info)


def _widen_graph(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for sparse in graph.sparse_initializer:
        _widen_tensor(sparse.values)
    for values in (graph.input, graph.output, graph.value_info):
        _widen_values(values)
    _widen_nodes(graph.node)


def _widen_nodes(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            if attribute.HasField("g"):
                _widen_graph(attribute.g)
            if attribute.HasField("sparse_tensor"):
                _widen_tensor(attribute.sparse_tensor.values)
            if attribute.HasField("tp"):
                _widen_type(attribute.tp)
            for tensor in attribute.tensors:
                _widen_tensor(tensor)
            for graph in attribute.graphs:
                _widen_graph(graph)


def _widen_values(values: Iterable[ValueInfoProto]) -> None:
    for value in values:
        _widen_type(value.type)


def _widen_type(kind: TypeProto) -> None:
    for name in ("tensor_type", "sparse_tensor_type"):
        if kind.HasField(name):
            tensor = getattr(kind, name)
            if tensor.elem_type == TensorProto.BFLOAT16:
                tensor.elem_type = TensorProto.FLOAT
    for name in ("sequence_type", "optional_type"):
        if kind.HasField(name):
            _widen_type(getattr(kind, name).elem_type)
    if kind.HasField("map_type"):
        _widen_type(kind.map_type.value_type)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type != TensorProto.BFLOAT16:
        return
    if tensor.raw_data:
        bits = np.frombuffer(tensor.raw_data, "<u2")
    else:
        bits = np.array(tensor.int32_data, "<u2")
        del tensor.int32_data[:]
    tensor.raw_data = (bits.astype("<u4") << 16).tobytes()
    tensor.data_type = TensorProto.FLOAT
