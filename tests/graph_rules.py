"""Small graphs for tests of rewrite rules: written as ONNX's text, rewritten, run before and after."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
from onnx import numpy_helper

from rocline import custom_ops
from rocline.export import passes, targets


def model(text, **weights):
    """Parses the text of a graph (``graph (float[...] x) => (...) {...}``); ``weights`` become its initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]> {text}')
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{index}"
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return proto


def rewrite(proto, *rules, target="rocm", dtype="fp32", **more):
    """Applies rules, each seeing shapes; returns the rewritten model and the outcome of the last one."""
    from dataclasses import replace

    from rocline.export.passes.known_sizes import KnownSizes
    from rocline.export.passes.tidying import Tidy

    loaded = ir.from_proto(proto)
    context = replace(passes.context_for(targets.load(target), dtype), **more)
    outcomes = passes.apply(loaded, (KnownSizes(), *rules, Tidy()), context)
    return ir.to_proto(loaded), outcomes[-2]


def run(proto, **feeds):
    """Runs a model on the CPU; returns its outputs by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    custom_ops.register(options)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip((output.name for output in session.get_outputs()), session.run(None, feeds), strict=True))


def operators(proto):
    """The operators of a model's main graph, in order."""
    return [node.op_type for node in proto.graph.node]
