"""Puts PoolNormalize behind an encoder's token vectors, where the model is one for sentence embeddings."""

import onnx_ir as ir

from rocline.custom_ops import DOMAIN
from rocline.custom_ops.rewriting import Context, Outcome, Refusal, Rule, Stage

_HIDDEN, _MASK, _POOLED = "last_hidden_state", "attention_mask", "sentence_embedding"


class SentenceHead(Rule):
    """``last_hidden_state``, ``attention_mask`` -> the output ``sentence_embedding`` float32 [batch, hidden], too."""

    name = "sentence embedding"
    made = "PoolNormalize"
    stage = Stage.POOL

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Adds the head where the context asks for one."""
        if context.pooling is None:
            return Outcome(self.name, self.made, 0)
        hidden = next((value for value in model.graph.outputs if value.name == _HIDDEN), None)
        mask = next((value for value in model.graph.inputs if value.name == _MASK), None)
        if hidden is None or hidden.shape is None or len(hidden.shape) != 3:
            reason = f"the model has no output '{_HIDDEN}' [batch, tokens, hidden]"
        elif mask is None or mask.dtype != ir.DataType.INT64:
            reason = f"the model has no int64 input '{_MASK}'"
        else:
            mode, normalize = context.pooling
            _add(model.graph, hidden, mask, {"mode": mode, "normalize": int(normalize)})
            return Outcome(self.name, self.made, 1)
        return Outcome(self.name, self.made, 0, (Refusal(_HIDDEN, reason),))


def _add(graph: ir.Graph, hidden: ir.Value, mask: ir.Value, attributes: dict[str, str | int]) -> None:
    head = ir.node("PoolNormalize", [hidden, mask], attributes, domain=DOMAIN, num_outputs=2)
    graph.append(head)
    pooled = head.outputs[0]
    assert hidden.shape is not None
    pooled.name, pooled.type = _POOLED, ir.TensorType(ir.DataType.FLOAT)
    pooled.shape = ir.Shape([hidden.shape[0], hidden.shape[2]])
    graph.outputs.append(pooled)


RULES = (SentenceHead(),)
