"""What is computed twice is computed once, and what a rewritten model declares is what it uses."""

import onnx_ir as ir
from onnx_ir.passes import common

from rocline import custom_ops
from rocline.custom_ops.rewriting import Context, Outcome, Rule

_FEW = 16
_VERSIONS = {custom_ops.DOMAIN: custom_ops.VERSION, "com.microsoft": 1}


class Duplicates(Rule):
    """Nodes that compute the same thing from the same values become one."""

    name = "duplicates"
    made = "removed: another node computes the same"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Merges duplicates and counts how many nodes that saved."""
        before = sum(1 for _ in model.graph.all_nodes())
        common.RemoveUnusedNodesPass()(model)
        for graph in (model.graph, *model.graph.subgraphs()):
            _merge_numbers(graph)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
        return Outcome(self.name, self.made, before - sum(1 for _ in model.graph.all_nodes()))


def _merge_numbers(graph: ir.Graph) -> None:
    """Makes equal lists of a few integers one initializer: axes, indices, shapes. Weights stay as they are."""
    kept: dict[tuple[ir.DataType, tuple[int, ...], bytes], ir.Value] = {}
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        small = tensor is not None and tensor.size <= _FEW and tensor.dtype in (ir.DataType.INT32, ir.DataType.INT64)
        if tensor is None or not small or value.is_graph_input() or value.is_graph_output():
            continue
        array = tensor.numpy()
        same = kept.setdefault((tensor.dtype, array.shape, array.tobytes()), value)
        if same is not value:
            value.replace_all_uses_with(same)


class Tidy(Duplicates):
    """Constants become initializers, and the model imports the domains of its operators and no others."""

    name = "tidying"
    made = "removed: another node computes the same"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Tidies the model; what no node reads goes."""
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        outcome = super().apply(model, context)
        used = {node.domain for node in model.graph.all_nodes()} | {""}
        for domain in set(model.opset_imports) - used:
            del model.opset_imports[domain]
        for domain in sorted(used - set(model.opset_imports)):
            model.opset_imports[domain] = _VERSIONS.get(domain, 1)
        return outcome
