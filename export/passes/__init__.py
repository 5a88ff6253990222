"""The pass pipeline: what was traced becomes few large nodes that the target runs.

A pass is a `rocline.custom_ops.rewriting.Rule`. Those that put in an operator of ours live in the operator's folder and
are found there; the others are here, one a file. `ORDER` is the one place that says what runs when.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import onnx_ir as ir
from onnx_ir.passes import common

from rocline.custom_ops import rewriting
from rocline.custom_ops.rewriting import Context, Outcome, Rule, Stage
from rocline.export import element_types
from rocline.export.passes.activations import Activations
from rocline.export.passes.gelu import Gelu
from rocline.export.passes.idle_nodes import IdleNodes, IdleReshapes
from rocline.export.passes.known_sizes import KnownSizes
from rocline.export.passes.last_token import LastToken
from rocline.export.passes.shapes import InferShapes
from rocline.export.passes.skip_layer_normalization import SkipLayerNormalization
from rocline.export.passes.tidying import Duplicates, Tidy
from rocline.export.targets import Target

# A stage stands for the rules of our operators that name it.
ORDER: tuple[Rule | Stage, ...] = (
    IdleNodes(),
    Duplicates(),
    KnownSizes(),
    IdleReshapes(),
    Stage.CACHE,
    Stage.ATTENTION,
    Stage.GATE,
    InferShapes(),
    Stage.NORM,
    LastToken(),
    Activations(),
    Gelu(),
    InferShapes(),
    SkipLayerNormalization(),
    Stage.POOL,
    Stage.SAMPLE,
    Tidy(),
)


def run(
    model: ir.Model,
    target: Target,
    dtype: str,
    *,
    sampling_head: bool = False,
    pooling: tuple[str, bool] | None = None,
) -> list[Outcome]:
    """Runs all passes over a model in fp32, in place.

    Args:
        model: with its weights in memory.
        target: the runtime that will load the model.
        dtype: ``fp32``, ``fp16`` or ``bf16``: what the model is converted to afterwards; only operators that the target
            has in it are put in.
        sampling_head: let a decoder with a cache of fixed size choose its next token itself.
        pooling: let an encoder make one vector of a text: mode, and whether its length is made 1.

    Returns:
        What each pass did, in order; passes that found nothing of theirs are left out.
    """
    context = replace(context_for(target, dtype), sampling_head=sampling_head, pooling=pooling)
    outcomes = apply(model, _rules(context), context)
    return [outcome for outcome in outcomes if outcome.matched or outcome.refused]


def apply(model: ir.Model, rules: Iterable[Rule], context: Context) -> list[Outcome]:
    """Applies rules in their order; what a rule left unused or out of order is put right before the next one."""
    outcomes = []
    for rule in rules:
        outcomes.append(rule.apply(model, context))
        if outcomes[-1].matched:
            common.RemoveUnusedNodesPass()(model)
            model.graph.sort()
    return outcomes


def context_for(target: Target, dtype: str) -> Context:
    """What the passes may know of a target when the model will have a dtype."""

    def runs(op_type: str, domain: str = "") -> bool:
        known = element_types.takes(op_type, domain, dtype, target.max_opset)
        return known and target.runs(op_type, dtype, domain)

    return Context(dtype=dtype, runs=runs, provider=target.provider, custom_ops=target.custom_ops)


def _rules(context: Context) -> Iterator[Rule]:
    ours = rewriting.found() if context.custom_ops else []
    for entry in ORDER:
        if isinstance(entry, Stage):
            yield from (rule for rule in ours if rule.stage is entry)
        else:
            yield entry
