"""GELU in its three forms becomes one operator, with the bias before it where the target adds it on the way.

The nodes around an Erf, a Tanh or a Sigmoid are taken as a function of one value and tried out on numbers: how they are
arranged does not matter. Sources: Hendrycks and Gimpel, Gaussian Error Linear Units (arXiv:1606.08415), whose two
approximations are ``tanh`` and ``quick``; the operators are ONNX Runtime's Gelu, BiasGelu, FastGelu and QuickGelu.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rocline.custom_ops import rewriting
from rocline.custom_ops.rewriting import Context, Outcome, Refusal, Rule

Array = npt.NDArray[np.float64]

_CONTRIB = "com.microsoft"
_POINTS = np.linspace(-6, 6, 61)
# float32 constants give 1e-8; erf and tanh differ by 5e-4.
_TOLERANCE = 1e-6
_QUICK = 1.702
_STANDARD_OPSET = 20
# Steps from the Erf, Tanh or Sigmoid back to the input, and on to the result.
_MOST_STEPS = 8


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf)(x)  # type: ignore[no-any-return]


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


_COMPUTES: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Div": np.divide,
    "Erf": _erf,
    "Mul": np.multiply,
    "Pow": np.power,
    "Sigmoid": _sigmoid,
    "Sub": np.subtract,
    "Tanh": np.tanh,
}
_FORMS: dict[str, Callable[[Array], Array]] = {
    "erf": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick": lambda x: x * _sigmoid(_QUICK * x),
    "silu": lambda x: x * _sigmoid(x),
}


@dataclass(frozen=True)
class _Found:
    """``result`` is the function ``form`` of ``source``, or of no known form; both None where there is no function."""

    form: str | None
    source: ir.Value
    result: ir.Value
    inside: frozenset[ir.Value]


class Gelu(Rule):
    """GELU, exact or approximated, after a bias or without one."""

    name = "GELU"
    made = "Gelu"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Rewrites every GELU, also in subgraphs."""
        made: Counter[str] = Counter()
        refused = []
        opset = model.opset_imports.get("", 0)
        for node in list(model.graph.all_nodes()):
            found = _recognise(node) if node.op_type in ("Erf", "Sigmoid", "Tanh") and not node.domain else None
            if found is None or found.form == "silu":
                continue
            op_type, domain, attributes = _operator(found, context, opset)
            reason = _why_not(found)
            if reason is None and not context.runs(op_type, domain):
                reason = f"the target has no {op_type} in {context.dtype}"
            if reason is not None:
                refused.append(Refusal(node.name or node.op_type, reason))
                continue
            _replace(found, op_type, domain, attributes)
            made[op_type] += 1
        return Outcome(self.name, ", ".join(sorted(made)) or self.made, made.total(), tuple(refused))


def _recognise(node: ir.Node) -> _Found | None:
    """Returns the GELU that a node belongs to, or what behaves like one far from zero; None for anything else."""
    likely = None
    sources = list(_back(node.inputs[0]))
    for result in _onward(node.outputs[0]):
        for source in sources:
            inside: set[ir.Value] = set()
            try:
                values = _evaluate(result, source, inside)
            except ValueError:
                continue
            form = next((name for name, exact in _FORMS.items() if _close(values, exact(_POINTS))), None)
            found = _Found(form, source, result, frozenset(inside - {result}))
            if form is not None:
                return found
            if likely is None and abs(values[-1] - _POINTS[-1]) < 0.1 and abs(values[0]) < 0.1:
                likely = found
    return likely


def _close(values: Array, exact: Array) -> bool:
    return bool(np.abs(values - exact).max() < _TOLERANCE)


def _back(value: ir.Value | None) -> Iterator[ir.Value]:
    """Yields what a value may be a function of: nearest first, following the operand that is no number."""
    for _ in range(_MOST_STEPS):
        if value is None:
            return
        yield value
        node = value.producer()
        if node is None or node.op_type not in _COMPUTES or node.domain:
            return
        value = next((operand for operand in node.inputs if _number(operand) is None), None)


def _onward(value: ir.Value) -> Iterator[ir.Value]:
    """Yields the results that a value may end in: behind a Mul, along the only use of each."""
    for _ in range(_MOST_STEPS):
        users = [user for user, _ in value.uses()]
        if len(users) != 1 or users[0].op_type not in _COMPUTES or users[0].domain:
            return
        value = users[0].outputs[0]
        if users[0].op_type == "Mul":
            yield value


def _evaluate(value: ir.Value | None, source: ir.Value, inside: set[ir.Value]) -> Array:
    """Returns the value on `_POINTS` of the source, in float64; collects what is computed on the way.

    Raises:
        ValueError: the value depends on something else.
    """
    if value is source:
        return _POINTS
    number = _number(value)
    if number is not None:
        return np.full_like(_POINTS, number)
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type not in _COMPUTES or node.domain:
        raise ValueError("depends on another value")
    inside.add(value)
    return _COMPUTES[node.op_type](*(_evaluate(operand, source, inside) for operand in node.inputs))  # type: ignore[no-any-return]


def _number(value: ir.Value | None) -> float | None:
    array = rewriting.constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 and array.dtype.kind == "f" else None


def _why_not(found: _Found) -> str | None:
    if found.form is None:
        return "its formula is not that of GELU nor of one of its approximations"
    for value in found.inside:
        outside = [user for user, _ in value.uses() if user.outputs[0] not in found.inside | {found.result}]
        if outside or value.is_graph_output():
            return "a value inside it is used elsewhere too"
    return None


def _operator(found: _Found, context: Context, opset: int) -> tuple[str, str, dict[str, Any]]:
    """Returns the operator for a GELU that the target runs, or, where it runs none, the plainest; with attributes."""
    if found.form == "quick":
        return "QuickGelu", _CONTRIB, {"alpha": _QUICK}
    if found.form == "erf" and _biased(found)[1] is not None and context.runs("BiasGelu", _CONTRIB):
        return "BiasGelu", _CONTRIB, {}
    contributed = "FastGelu" if found.form == "tanh" else "Gelu"
    if opset < _STANDARD_OPSET or context.runs(contributed, _CONTRIB):
        return contributed, _CONTRIB, {}
    return "Gelu", "", {"approximate": "tanh"} if found.form == "tanh" else {}


def _replace(found: _Found, op_type: str, domain: str, attributes: dict[str, Any]) -> None:
    node = found.result.producer()
    assert node is not None
    source, bias = _biased(found) if op_type in ("BiasGelu", "FastGelu") else (found.source, None)
    (made,) = rewriting.insert(node, op_type, [source, bias], attributes, domain=domain)
    made.type = found.source.type
    rewriting.replace(found.result, made)


def _biased(found: _Found) -> tuple[ir.Value, ir.Value | None]:
    """Returns the source before a bias vector is added and the bias, where nothing else reads their sum."""
    node = rewriting.producer(found.source, "Add")
    outside = [user for user, _ in found.source.uses() if user.outputs[0] not in found.inside | {found.result}]
    if node is not None and not outside and not found.source.is_graph_output():
        for bias, source in (node.inputs, tuple(reversed(node.inputs))):
            array = rewriting.constant(bias)
            if source is not None and array is not None and array.ndim == 1 and array.size > 1:
                return source, bias
    return found.source, None
