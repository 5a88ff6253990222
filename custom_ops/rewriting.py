"""What an op's ``rule.py`` is written with: a rule puts the op into a graph, and says where it did and did not.

An op's folder may hold a ``rule.py``, or several ``rule_*.py``, each ending in ``RULES``, a sequence of `Rule`.
:func:`found` collects them; in which order they run is the pass pipeline's matter, which goes by each rule's `Stage`.
This module and the rules import onnx_ir and onnxscript, which come with the extra ``export`` alone: nothing else below
custom_ops may import them.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult, RewriteRule, RewriteRuleClassBase, RewriteRuleSet

_NAMES = "rocline.names"  # of a graph's `meta`: how often each was given; of a value's: whether it was made here
MARKERS = "rocline.marker"  # the domain of the operators that stand for what PyTorch's modules meant


class Stage(Enum):
    """What a rule is about; the pipeline runs all rules of a stage after those of the stages before it."""

    CACHE = "keys and values go into the cache"
    ATTENTION = "queries meet keys"
    GATE = "a gated MLP's product"
    NORM = "norms and the sums before them"
    POOL = "hidden states become a vector"
    SAMPLE = "logits become a token"


@dataclass(frozen=True)
class Refusal:
    """A node that looked like a rule's, and why the rule left it."""

    node: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What a rule did to a model.

    Attributes:
        rule: its name.
        made: the operator it puts in, e.g. ``SwiGlu``.
        matched: how many times it did.
        refused: where it did not, in the graph's order.
    """

    rule: str
    made: str
    matched: int
    refused: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a rule may know beside the graph.

    Attributes:
        dtype: ``fp32``, ``fp16`` or ``bf16``: what the model is converted to afterwards. While rules run it is fp32.
        runs: ``runs(op_type, domain="")`` tells whether the target has the operator in that dtype.
        provider: the target's execution provider, by ONNX Runtime's name.
        custom_ops: whether the target runs rocline's own operators: without it no rule of an op is applied.
        sampling_head: whether a decoder shall choose its next token itself.
        pooling: how an encoder shall make one vector of a text: PoolNormalize's mode, and whether its length is made 1;
            None for not at all.
    """

    dtype: str
    runs: Callable[..., bool]
    provider: str
    custom_ops: bool = True
    sampling_head: bool = False
    pooling: tuple[str, bool] | None = None


class Rule(ABC):
    """One rewrite of a model, stateless.

    Attributes:
        name: unique, e.g. ``skip rms norm``.
        made: the operator it puts in, or in words what it does.
        stage: when it runs; a rule of an op has one, a pass that the pipeline places itself has none.
    """

    name: str
    made: str
    stage: Stage | None = None

    @abstractmethod
    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Rewrites the model in place. Nodes that are no longer used may be left behind."""


class Rewrite(RewriteRuleClassBase):
    """A pattern with its check and its replacement; ``check`` fails with `failed` and a reason.

    Args:
        context: of the run.
    """

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context


@dataclass(frozen=True, kw_only=True)
class PatternRule(Rule):
    """A rule made of onnxscript patterns.

    Attributes:
        name, made, stage: as in `Rule`.
        rewrites: classes of the patterns, tried in this order at each node.
        commute: try each pattern with the operands of Add and Mul exchanged, too.
    """

    name: str
    made: str
    stage: Stage
    rewrites: Sequence[type[Rewrite]]
    commute: bool = False

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Applies the patterns to every node once, and collects the reasons of the checks that failed."""
        attempts = [_Attempt(rewrite(context)) for rewrite in self.rewrites]
        rules = RewriteRuleSet([attempt.rule() for attempt in attempts], commute=self.commute)
        matched = rules.apply_to_model(model)
        refused: dict[str, Refusal] = {}
        for attempt in attempts:
            refused |= attempt.refused
        done = {node for attempt in attempts for node in attempt.done}
        return Outcome(self.name, self.made, matched, tuple(entry for key, entry in refused.items() if key not in done))


@dataclass
class _Attempt:
    """One pattern while it is applied, with where it failed."""

    rewrite: Rewrite
    refused: dict[str, Refusal] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    def rule(self) -> RewriteRule:
        # Without a name: it would be written into the metadata of every node that the rule makes.
        return RewriteRule(self.rewrite.pattern, self.rewrite.rewrite, self._check)

    def _check(self, context: MatchContext, **bindings: Any) -> MatchResult | bool:
        node = context.root.name or context.root.op_type
        result: MatchResult | bool = self.rewrite.check(context, **bindings)
        if result:
            self.done.append(node)
        else:
            reason = result.reason if isinstance(result, MatchResult) else "its check failed"
            self.refused[node] = Refusal(node, reason)
        return result


def failed(reason: str, *where: ir.Node | ir.Value) -> MatchResult:
    """A check's answer that the pattern must not be rewritten here."""
    return MatchResult().fail(reason, list(where))


def found() -> list[Rule]:
    """Every rule of every op, in the alphabet's order of their files, which are named ``rule.py`` or ``rule_*.py``."""
    rules: list[Rule] = []
    for path in sorted(Path(__file__).resolve().parent.glob("*/rule*.py")):
        rules.extend(import_module(f"rocline.custom_ops.{path.parent.name}.{path.stem}").RULES)
    return rules


def producer(value: ir.Value | None, *op_types: str, domain: str = "") -> ir.Node | None:
    """The node that makes a value, if it is one of these operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in op_types and node.domain == domain else None


def constant(value: ir.Value | None) -> Any:
    """The NumPy array of a value that is known, an initializer or a Constant's; None for others."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def insert(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, Any] | None = None,
    *,
    outputs: int = 1,
    domain: str = "",
) -> Sequence[ir.Value]:
    """Makes a node right before another one and returns its outputs; None at the end of the inputs is left off.

    Its name, and those of its outputs, follow the other node's.
    """
    given = list(inputs)
    while given and given[-1] is None:
        given.pop()
    graph = before.graph
    assert graph is not None
    used: Counter[str] = graph.meta.setdefault(_NAMES, Counter())
    name = f"{before.name}/{op_type}"
    used[name] += 1
    name = name if used[name] == 1 else f"{name}_{used[name] - 1}"
    node = ir.node(op_type, given, attributes or {}, domain=domain, num_outputs=outputs, name=name)
    for index, output in enumerate(node.outputs):
        output.name = f"{name}_output_{index}"
        output.meta[_NAMES] = True
    graph.insert_before(before, node)
    return node.outputs


def initializer(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    """Adds an initializer to a graph; a number is put after the name where it is taken."""
    taken, number = name, 0
    while taken in graph.initializers:
        number += 1
        taken = f"{name}_{number}"
    tensor = ir.tensor(array, name=taken)
    value = ir.Value(name=taken, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def replace(old: ir.Value, new: ir.Value) -> None:
    """Gives all uses of a value to another one, which takes its type and its shape.

    One that `insert` made, or that the graph now returns, takes the name too: it tells which module computes it.
    """
    new.type, new.shape = new.type or old.type, new.shape or old.shape
    named = new.meta.pop(_NAMES, False) or old.is_graph_output()
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if named:
        name = old.name
        old.name = f"{name}_replaced"
        new.name = name
