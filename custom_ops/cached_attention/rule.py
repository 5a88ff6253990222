"""Puts CachedAttention in the place of marked attention over a cache."""

import onnx_ir as ir

from rocline.custom_ops import DOMAIN, rewriting
from rocline.custom_ops.rewriting import MARKERS, Context, Outcome, Refusal, Rule, Stage, insert
from rocline.custom_ops.rule_values import apart, reshapes_to, side_by_side, transposed

# Of the operator (spec.py).
_LARGEST_HEAD = 256


class PutIn(Rule):
    """Marked attention -> CachedAttention, whose y [B, T, H * D] is what the model reshapes the heads to."""

    name = "cached attention"
    made = "CachedAttention"
    stage = Stage.ATTENTION

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Rewrites every marked attention of the main graph."""
        matched, refused = 0, []
        for node in list(model.graph):
            if (node.domain, node.op_type) != (MARKERS, "Attention"):
                continue
            reason = _why_not(node)
            if reason:
                refused.append(Refusal(node.name or "", reason))
            else:
                _put_in(node)
                matched += 1
        return Outcome(self.name, self.made, matched, tuple(refused))


def _why_not(node: ir.Node) -> str | None:
    head = node.attributes["head_dim"].as_int()
    if head > _LARGEST_HEAD:
        return f"heads of {head} elements, CachedAttention takes up to {_LARGEST_HEAD}"
    # What the operator takes 0 for is another thing: no window, and the usual scale.
    if node.attributes["window"].as_int() == 0 or node.attributes["scale"].as_float() == 0:
        return "a window or a scale of 0"
    # ONNX Runtime keeps no other order between what writes the cache in place and what reads it.
    caches = [rewriting.producer(cache, "RotaryCache", domain=DOMAIN) for cache in node.inputs[1:3]]
    if caches[0] is None or caches[0] is not caches[1]:
        return "its keys and values are not RotaryCache's"
    return None


def _put_in(node: ir.Node) -> None:
    q, present_k, present_v, position_ids = node.inputs
    heads, kv_heads, head, window = (
        node.attributes[name].as_int() for name in ("heads", "kv_heads", "head_dim", "window")
    )
    assert q is not None
    source = transposed(q)
    if source is None:
        (source,) = insert(node, "Transpose", [q], {"perm": (0, 2, 1, 3)})
    packed = side_by_side(source, heads, head, node)
    y, _ = insert(
        node,
        "CachedAttention",
        [packed, present_k, present_v, position_ids],
        {
            "heads": heads,
            "kv_heads": kv_heads,
            "scale": node.attributes["scale"].as_float(),
            "window": max(0, window),
            "soft_cap": node.attributes["soft_cap"].as_float(),
        },
        outputs=2,
        domain=DOMAIN,
    )
    y.shape, y.type = packed.shape, packed.type
    old = node.outputs[0]
    for user, _ in list(old.uses()):
        if user.op_type == "Reshape" and y.shape is not None and reshapes_to(user.outputs[0].shape, y.shape):
            rewriting.replace(user.outputs[0], y)
    if old.uses():
        rewriting.replace(old, apart(y, heads, head, node))


RULES = (PutIn(),)
