"""Turns an fp32 ONNX file into fp16 or bf16, in place.

Weights, activations and the KV cache get the new type. Everything else that a caller feeds or reads stays float32, with
one Cast inside the graph: NumPy has no bf16, sampling and pooling are done in fp32 anyway, and code that calls a model
does not change with its dtype. Integers are not touched. What would lose the answer in a half type, and what the target
has no half kernel for, stays in fp32 between Casts (`rocline.export.precision` says what and why).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rocline.errors import ExportError
from rocline.export import element_types, graph_files, overflow, precision
from rocline.export.targets import Target

_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_NAMES = {ir.DataType.FLOAT16: "tensor(float16)", ir.DataType.BFLOAT16: "tensor(bfloat16)"}
_CACHE = ("past_key_values.", "present.")
# Bounds of a Clip mean what they say; elsewhere a huge constant is a mask, and leaves room for what is added to it.
_BOUNDING = frozenset({"Clip", "Max", "Min"})
# A number that is added or chosen instead of a score hides it; one that multiplies does not. No weight is so large.
_HIDING = frozenset({*_BOUNDING, "Add", "Expand", "Sub", "Where"})
_HUGE = 1e8
# How many nodes of an island a note names.
_NAMED = 6
_MADE_FROM_ATTRIBUTES = frozenset({"Cast", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform"})


def convert(path: Path, dtype: str, target: Target, peaks: Mapping[str, float] | None = None) -> list[str]:
    """Converts an fp32 ONNX file, and returns notes on what was clamped or stayed in fp32.

    Args:
        path: the file; it is rewritten.
        dtype: ``fp16`` or ``bf16``.
        target: the runtime the file is for.
        peaks: for fp16, the largest magnitude of each value, from `rocline.export.overflow.scan`: what makes or reads
            one that may overflow stays in fp32.

    Raises:
        ExportError: for bf16, the target has no bf16 kernel for some of the operators, which are named; for fp16, the
            KV cache would overflow.
    """
    if dtype not in target.dtypes:
        raise ExportError(f"dtype {dtype!r}: target {target.name!r} runs {', '.join(target.dtypes)}")
    model = ir.load(path)
    element_types.infer(model)
    conversion = _Conversion(model, dtype, target, peaks or {})
    notes = conversion.run()
    graph_files.save(model, path)
    return notes


class _Conversion:
    """One file on its way from fp32 to a half type."""

    def __init__(self, model: ir.Model, dtype: str, target: Target, peaks: Mapping[str, float]):
        self.model = model
        self.peaks = peaks
        self.name = dtype
        self.half = _TYPES[dtype]
        self.target = target
        self.limits: Any = ml_dtypes.finfo(self.half.numpy())  # type: ignore[no-untyped-call]
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.constants: dict[tuple[ir.Value, ir.DataType, bool, bool], ir.Value] = {}
        self.clamped: dict[str, None] = {}
        self.derived: set[ir.Node] = set()
        self.names = {output.name for node in model.graph.all_nodes() for output in node.outputs}
        self.names.update(name for graph in (model.graph, *model.graph.subgraphs()) for name in graph.initializers)

    def run(self) -> list[str]:
        self._drop_idle_casts()
        nodes = list(self.model.graph.all_nodes())
        self.derived = precision.integer_derived(nodes)
        kept = precision.keep_in_fp32(self.model.graph, float(self.limits.smallest_subnormal))
        overflowing = self._overflowing(nodes)
        kept.update(overflowing)
        lacking = [node for node in nodes if node not in kept and not self._runs(node)]
        refused = [node for node in lacking if _computes(node)]
        if refused and self.name == "bf16":
            raise ExportError(
                f"dtype 'bf16': {self.target.provider} of target {self.target.name!r} has no bf16 kernel for "
                f"{_counted(refused)}: choose fp16 or fp32"
            )
        kept.update(lacking)
        outputs = {value: self._boundary_type(value) for value in self.model.graph.outputs}
        wanted = {node: self._input_types(node, node in kept) for node in nodes}
        for node in nodes:
            self._retype_outputs(node, node in kept)
        self._retype_inputs()
        for node in nodes:
            for index, needed in enumerate(wanted[node]):
                value = node.inputs[index]
                if needed is not None and value is not None:
                    node.replace_input_with(index, self._as(value, needed, node))
        self._finish_outputs(outputs)
        self._drop_unused()
        notes = [f"stayed in fp32, since {self.target.name} has no {self.name} kernel: {_counted(lacking)}"] * bool(
            lacking
        )
        if overflowing:
            notes.append(self._island(overflowing))
        if self.clamped:
            first = ", ".join(list(self.clamped)[:3])
            notes.append(f"clamped {len(self.clamped)} constants outside the range of {self.name}: {first}")
        return notes

    def _overflowing(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        """Returns the nodes that make or read a value, or hold a weight, outside the half type's range."""
        large = overflow.values(self.model.graph, self.peaks, float(self.limits.max))
        for value in large:
            if (value.name or "").startswith(_CACHE):
                raise ExportError(
                    f"dtype {self.name!r}: {value.name} reaches {self.peaks[value.name or '']:.3g} on the sample "
                    f"inputs, which a cache in {self.name} cannot hold: choose bf16 or fp32"
                )
        return [
            node
            for node in nodes
            if any(value in large for value in (*node.inputs, *node.outputs))
            or any(self._outside(value) and not self._is_mask(value, node) for value in node.inputs)
        ]

    def _outside(self, value: ir.Value | None) -> bool:
        """Tells whether a value is a float constant with finite elements outside the half type's range."""
        tensor = precision.constant(value) if precision.is_float(value) else None
        if tensor is None:
            return False
        array = tensor.numpy()
        return bool((np.isfinite(array) & (np.abs(array) > float(self.limits.max))).any())

    def _is_mask(self, value: ir.Value | None, node: ir.Node) -> bool:
        """Tells whether a large constant is there to hide or to bound something, and may be clamped."""
        tensor = precision.constant(value)
        assert tensor is not None
        array = tensor.numpy()
        outside = array[np.isfinite(array) & (np.abs(array) > float(self.limits.max))]
        alone = array.size == 1 and node.op_type in _HIDING
        return node in self.derived or alone or bool((outside == outside[0]).all() and outside[0] <= -_HUGE)

    def _island(self, nodes: Sequence[ir.Node]) -> str:
        def height(node: ir.Node) -> float:
            return max((self.peaks.get(value.name or "", 0.0) for value in node.outputs), default=0.0)

        highest = max(nodes, key=height)
        named = ", ".join(f"{node.op_type} {node.name}" for node in nodes[:_NAMED])
        more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
        return (
            f"kept {len(nodes)} nodes in fp32, for values near or beyond {float(self.limits.max):.0f} on the sample "
            f"inputs (at most {height(highest):.3g}, {highest.op_type} {highest.name}): {named}{more}"
        )

    def _drop_idle_casts(self) -> None:
        """Removes Casts from float32 to float32, which a tracer leaves where PyTorch upcasts a half model."""
        for node in list(self.model.graph.all_nodes()):
            source = node.inputs[0] if node.op_type == "Cast" else None
            idle = precision.is_float(source) and precision.is_float(node.outputs[0])
            if source is not None and idle and not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(source)
                assert node.graph is not None
                node.graph.remove(node, safe=True)

    def _boundary_type(self, value: ir.Value) -> ir.DataType | None:
        """Returns the type a float input or output of the model will have."""
        if not precision.is_float(value):
            return None
        return self.half if (value.name or "").startswith(_CACHE) else ir.DataType.FLOAT

    def _retype_inputs(self) -> None:
        for value in self.model.graph.inputs:
            boundary = self._boundary_type(value)
            if boundary is not None:
                value.dtype = boundary
        for graph in self.model.graph.subgraphs():
            for value in filter(precision.is_float, graph.inputs):
                value.dtype = self.half

    def _finish_outputs(self, wanted: dict[ir.Value, ir.DataType | None]) -> None:
        """Gives the model's outputs their type and their own names back, and those of subgraphs the half type."""
        graph = self.model.graph
        for index, value in enumerate(graph.outputs):
            needed = wanted[value]
            if needed is not None and value.dtype != needed:
                name, cast = value.name, self._as(value, needed, None)
                value.name = self._fresh(f"{name}_{self.half.name.lower()}")
                cast.name = name
                graph.outputs[index] = cast
        for inner in graph.subgraphs():
            for index, value in enumerate(inner.outputs):
                if precision.constant(value) is not None and precision.is_float(value):
                    inner.outputs[index] = self._constant(value, self.half, bounding=False, owner=inner)
                elif precision.is_float(value):
                    inner.outputs[index] = self._as(value, self.half, None)

    def _drop_unused(self) -> None:
        """Removes constants that have been converted; what replaced an initializer takes its name."""
        for (value, _, _, _), made in self.constants.items():
            producer, graph, name = value.producer(), value.graph, value.name
            if made is value or value.uses() or value.is_graph_output():
                continue
            if producer is not None and producer.graph is not None:
                producer.graph.remove(producer, safe=True)
            elif graph is not None and name is not None and name in graph.initializers:
                del graph.initializers[name]
                if made.graph is graph:
                    made.name = name

    def _runs(self, node: ir.Node) -> bool:
        """Tells whether the target computes a node in the half type; nodes without floats need nothing."""
        floats = any(precision.is_float(value) for value in (*node.inputs, *node.outputs))
        if not floats or node.op_type in element_types.CONTROL_FLOW or node.op_type == "Constant":
            return True
        schema = element_types.node_schema(node, self.model.opset_imports)
        if schema is None:
            return self.target.runs(node.op_type, self.name, node.domain)
        outputs = [schema.output(index) for index, value in enumerate(node.outputs) if precision.is_float(value)]
        if any(_NAMES[self.half] not in schema.allowed[output] for output in outputs[:1] if output in schema.allowed):
            return False
        return self.target.runs(node.op_type, self.name, node.domain, schema.since)

    def _input_types(self, node: ir.Node, kept: bool) -> list[ir.DataType | None]:
        """Returns the type each float input has to have; None for other inputs."""
        schema = element_types.node_schema(node, self.model.opset_imports)
        known = None if kept or node.op_type in element_types.CONTROL_FLOW else schema
        return [
            (ir.DataType.FLOAT if kept else self._formal_type(known.input(index) if known else None, known))
            if precision.is_float(value)
            else None
            for index, value in enumerate(node.inputs)
        ]

    def _formal_type(self, formal: str | None, schema: element_types.Schema | None) -> ir.DataType:
        if formal is None or schema is None:
            return self.half
        return self.half if _NAMES[self.half] in schema.allowed.get(formal, (formal,)) else ir.DataType.FLOAT

    def _retype_outputs(self, node: ir.Node, kept: bool) -> None:
        if kept or node.op_type == "Constant":
            return
        schema = element_types.node_schema(node, self.model.opset_imports)
        known = None if node.op_type in element_types.CONTROL_FLOW else schema
        for index, value in enumerate(node.outputs):
            if precision.is_float(value):
                value.dtype = self._formal_type(known.output(index) if known else None, known)
                if node.op_type in _MADE_FROM_ATTRIBUTES and value.dtype == self.half:
                    self._retype_attribute(node)

    def _retype_attribute(self, node: ir.Node) -> None:
        if node.op_type == "ConstantOfShape":
            given = node.attributes.get("value")
            array = given.as_tensor().numpy() if given is not None else np.zeros(1, np.float32)
            clamped = self._clamped(array, node.name or "", bounding=False)
            node.attributes.add(ir.AttrTensor("value", ir.tensor(clamped.astype(self.half.numpy()))))
        else:
            name = "to" if node.op_type == "Cast" else "dtype"
            node.attributes.add(ir.AttrInt64(name, self.half.value))

    def _as(self, value: ir.Value, needed: ir.DataType, user: ir.Node | None) -> ir.Value:
        """Returns the value in another type: a converted constant, or a Cast right after it, made once."""
        if precision.constant(value) is not None:
            clamp = user is None or not self._outside(value) or self._is_mask(value, user)
            return self._constant(value, needed, clamp=clamp, bounding=user is not None and user.op_type in _BOUNDING)
        if value.dtype == needed:
            return value
        if (value, needed) not in self.casts:
            cast = ir.node("Cast", [value], {"to": needed.value}, name=self._fresh(f"{value.name}_cast"))
            made = cast.outputs[0]
            made.name, made.dtype, made.shape = self._fresh(f"{value.name}_{needed.name.lower()}"), needed, value.shape
            producer = value.producer()
            if producer is not None:
                assert producer.graph is not None
                producer.graph.insert_after(producer, cast)
            else:
                assert value.graph is not None
                value.graph.insert_before(value.graph[0], cast)
            self.casts[value, needed] = made
        return self.casts[value, needed]

    def _constant(
        self,
        value: ir.Value,
        needed: ir.DataType,
        *,
        bounding: bool,
        clamp: bool = True,
        owner: ir.Graph | None = None,
    ) -> ir.Value:
        key = (value, needed, bounding, clamp)
        if key not in self.constants:
            tensor = precision.constant(value)
            assert tensor is not None
            original = tensor.numpy()
            held = self._clamped(original, value.name or "", bounding=bounding) if clamp else original
            array = held.astype(needed.numpy(), copy=False)
            if array is original:
                self.constants[key] = value
            else:
                made = ir.Value(
                    name=self._fresh(f"{value.name}_{needed.name.lower()}"),
                    shape=ir.Shape(array.shape),
                    type=ir.TensorType(needed),
                    const_value=ir.tensor(array),
                )
                (owner or self.model.graph).register_initializer(made)
                self.constants[key] = made
        return self.constants[key]

    def _clamped(self, array: npt.NDArray[np.float32], name: str, *, bounding: bool) -> npt.NDArray[np.float32]:
        """Returns finite values held to the half type's range: half of it for masks, so that sums stay in it too."""
        largest = float(self.limits.max)
        outside = np.isfinite(array) & (np.abs(array) > largest)
        if not outside.any():
            return array
        limit = largest if bounding else largest / 2
        first = array[outside].flat[0]
        self.clamped[f"{name} ({first:.3g} to {np.sign(first) * limit:.4g})"] = None
        return np.where(outside, np.clip(array, -limit, limit), array)

    def _fresh(self, name: str) -> str:
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name


def _computes(node: ir.Node) -> bool:
    """Tells whether a node makes floats from floats; the others (a comparison, a fill) are as exact behind a Cast."""
    return any(map(precision.is_float, node.inputs)) and any(map(precision.is_float, node.outputs))


def _counted(nodes: Iterable[ir.Node]) -> str:
    counts = Counter(node.op_type for node in nodes)
    return ", ".join(f"{op} ({count})" for op, count in sorted(counts.items()))
