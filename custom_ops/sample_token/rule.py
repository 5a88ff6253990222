"""Puts SampleToken behind a decoder's logits, where a sampling head is asked for."""

import numpy as np
import onnx_ir as ir

from rocline.custom_ops import DOMAIN, rewriting
from rocline.custom_ops.rewriting import Context, Outcome, Refusal, Rule, Stage, producer

_LOGITS, _TOKEN = "logits", "next_token"
# The operator's inputs behind the logits, with the shapes of the graph's: one value for all rows, or one each.
_PARAMETERS: dict[str, tuple[ir.DataType, list[str | int]]] = {
    "temperature": (ir.DataType.FLOAT, ["parameter_rows"]),
    "top_k": (ir.DataType.INT32, ["parameter_rows"]),
    "top_p": (ir.DataType.FLOAT, ["parameter_rows"]),
    "min_p": (ir.DataType.FLOAT, ["parameter_rows"]),
    "repetition_penalty": (ir.DataType.FLOAT, ["parameter_rows"]),
    "seed": (ir.DataType.INT64, ["batch_size", 2]),
}


class SamplingHead(Rule):
    """Logits [batch, 1, vocabulary] -> the output ``next_token`` int64 [batch] too, and its parameters as inputs.

    The penalty for repetition counts no tokens: the operator's input for those before is left off, since the graph does
    not hold them.
    """

    name = "sampling head"
    made = "SampleToken"
    stage = Stage.SAMPLE

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Adds the head where the context asks for it."""
        if not context.sampling_head:
            return Outcome(self.name, self.made, 0)
        logits = next((output for output in model.graph.outputs if output.name == _LOGITS), None)
        if logits is None or logits.shape is None or len(logits.shape) != 3 or logits.shape[1] != 1:
            reason = "the model has no output 'logits' [batch, 1, vocabulary]"
            return Outcome(self.name, self.made, 0, (Refusal(_LOGITS, reason),))
        _add(model.graph, logits)
        return Outcome(self.name, self.made, 1)


def _add(graph: ir.Graph, logits: ir.Value) -> None:
    parameters = [
        ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        for name, (dtype, shape) in _PARAMETERS.items()
    ]
    head = ir.node("SampleToken", [_rows(graph, logits), *parameters], domain=DOMAIN, num_outputs=2)
    graph.append(head)
    token = head.outputs[0]
    assert logits.shape is not None
    token.name, token.type, token.shape = _TOKEN, ir.TensorType(ir.DataType.INT64), ir.Shape(logits.shape[:1])
    graph.inputs.extend(parameters)
    graph.outputs.append(token)


def _rows(graph: ir.Graph, logits: ir.Value) -> ir.Value:
    """The logits as [batch, vocabulary]: what they were made of, if they were that."""
    made = producer(logits, "Reshape", "Unsqueeze")
    source = made.inputs[0] if made is not None else None
    if source is not None and source.shape is not None and len(source.shape) == 2:
        return source
    axes = rewriting.initializer(graph, "logits_axis", np.array([1], np.int64))
    squeeze = ir.node("Squeeze", [logits, axes])
    graph.append(squeeze)
    squeeze.outputs[0].type = logits.type
    return squeeze.outputs[0]


RULES = (SamplingHead(),)
