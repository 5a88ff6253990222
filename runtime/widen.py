"""Turns a bfloat16 model into a float32 one, in memory: ONNX Runtime's CPU provider has no bfloat16 MatMul, Add or Mul.

Every bfloat16 number is a float32 number (its upper half), so weights keep their values; what changes is that results
are no longer rounded to bfloat16 on the way.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto
from onnx.external_data_helper import load_external_data_for_model, load_external_data_for_tensor, uses_external_data

Array = np.ndarray[Any, Any]

_TYPE_ATTRIBUTES = ("to", "dtype")


@dataclass(frozen=True)
class Widened:
    """A widened model, ready to be loaded.

    Attributes:
        model: the serialised model; of the tensors in ``weights`` it holds the outline only.
        weights: the large float32 tensors by name, kept apart since a serialised model ends at 2 GB.
    """

    model: bytes
    weights: dict[str, Array]


def load_widened(path: Path, *, apart_from: int = 1 << 20) -> Widened:
    """Reads a model with its external data and widens it; needs no more memory than the result and one tensor.

    Args:
        path: the ONNX file.
        apart_from: bytes from which a float32 tensor is kept apart.
    """
    model = onnx.load(path, load_external_data=False)
    weights = {}
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
        _widen_tensor(tensor)
        if tensor.data_type == TensorProto.FLOAT and len(tensor.raw_data) >= apart_from:
            weights[tensor.name] = np.frombuffer(tensor.raw_data, "<f4").reshape(tensor.dims)
            tensor.ClearField("raw_data")
    load_external_data_for_model(model, str(path.parent))
    widen_bfloat16(model)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            # ONNX Runtime takes a tensor from memory only in place of one that lies in another file.
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="memory")
    return Widened(model.SerializeToString(), weights)


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
