"""Runs an operator whose kernel is not emulated, and prints ONNX Runtime's error."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

node = helper.make_node("Trilu", ["x"], ["y"])
x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])
graph = helper.make_graph([node], "graph", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
providers = ["ROCMExecutionProvider", "CPUExecutionProvider"]
session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
assert session.get_providers() == providers, session.get_providers()
try:
    session.run(None, {"x": np.ones((4, 4), np.float32)})
except Exception as error:
    print(error)
