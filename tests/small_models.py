"""Small ONNX models, written by hand, for tests of the runtime."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
STRING, BFLOAT16 = TensorProto.STRING, TensorProto.BFLOAT16


def model(nodes, inputs, outputs, initializers=(), *, opsets=None, ir_version=8, value_infos=()):
    """Builds a model; inputs and outputs are (name, element type, shape)."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        list(initializers),
        value_info=[helper.make_tensor_value_info(*spec) for spec in value_infos],
    )
    imports = [helper.make_opsetid(*pair) for pair in (opsets or {"": 17}).items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="tests")


def save(proto, folder, name="model.onnx"):
    """Writes the model and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def two_inputs():
    """y = ids + mask, tied in ``batch`` and ``sequence``."""
    shape = ["batch", "sequence"]
    return model(
        [helper.make_node("Add", ["input_ids", "attention_mask"], ["y"])],
        [("input_ids", INT64, shape), ("attention_mask", INT64, shape)],
        [("y", INT64, shape)],
    )


def matmul(weights=None):
    """y = x @ w, with x [batch, 4] and w [4, 3] float32."""
    weights = np.arange(12, dtype=np.float32).reshape(4, 3) if weights is None else weights
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["batch", 4])],
        [("y", FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "w")],
    )


def successor():
    """y = x + 1, with x and y [n] of the same symbol."""
    one = helper.make_tensor("one", FLOAT, [1], [1])
    return model([helper.make_node("Add", ["x", "one"], ["y"])], [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])], [one])


def passed_on():
    """y = -x; and x [n] itself is an output too."""
    outputs = [("y", FLOAT, ["n"]), ("x", FLOAT, ["n"])]
    return model([helper.make_node("Neg", ["x"], ["y"])], [("x", FLOAT, ["n"])], outputs)


def with_external_data(folder, location="model.onnx.data"):
    """Writes `matmul` with its 48 bytes of weights in another file; returns the path of the model."""
    proto = matmul()
    path = folder / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def point_elsewhere(path, **entries):
    """Rewrites entries (location, offset, length) of the first tensor's external data; None removes one."""
    proto = onnx.load(path, load_external_data=False)
    tensor = proto.graph.initializer[0]
    kept = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in kept.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(proto.SerializeToString())


def package_file(package, *parts):
    """Returns a file of an installed package, which is not imported."""
    from importlib import metadata

    return Path(str(metadata.distribution(package).locate_file(Path(*parts))))
