"""Where markers enter a model: the public seams of transformers, patched for the time of a trace and restored after it.

The seams are the registries of attention and mask functions, the cache's layers, each modelling file's
``apply_rotary_pos_emb``, and the forwards of norms, activations, rotary embeddings, GPT-2's projections and the output
embeddings.
A seam that a release of transformers moved is a `Refused`, as is any use of one that the markers cannot stand for.
"""

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from rocline.export.markers import probes
from rocline.export.markers.functions import (
    Activation,
    Attention,
    CacheAppend,
    Head,
    LastToken,
    Rotary,
    RotaryTable,
    mark,
)
from rocline.export.markers.refusal import Refused

Tensor = torch.Tensor

IMPLEMENTATION = "rocline"
"""The name under which attention and mask are registered, and which the model's configs get."""

# What attention modules pass along that says nothing about the attention's formula: positions are the markers' own, the
# window and causality are in the mask.
_WITHOUT_MEANING = frozenset(
    ("cache_position", "dropout", "is_causal", "position_embeddings", "position_ids", "sliding_window", "use_cache")
)


@dataclass(frozen=True)
class MaskRule:
    """Stands for the attention mask on its way from where the model makes it to each layer's attention.

    Attributes:
        window: as in `probes.mask_window`.
    """

    window: int

    def __getitem__(self, index: Any) -> Any:
        """Refuses what an attention that does not come from the registry does first."""
        raise Refused("an attention works on the mask itself instead of asking transformers' registry")


def seam(home: str, name: str) -> Any:
    """Returns what transformers keeps under a name.

    Raises:
        Refused: it is no longer there.
    """
    try:
        return getattr(importlib.import_module(home), name)
    except (ImportError, AttributeError):
        import transformers

        raise Refused(f"transformers {transformers.__version__} has no {home}.{name}") from None


class Seams:
    """The markers' side of one trace.

    Args:
        model: a decoder-only transformers model.
        positions: how many there are; the rotary tables get as many rows.

    Attributes:
        unmarked: what was left as PyTorch has it, and why, once for each module.
    """

    def __init__(self, model: Any, positions: int):
        self.model = model
        self.positions = positions
        self.unmarked: list[str] = []
        self._probed: set[tuple[Any, ...]] = set()
        # Of the forward that runs: its positions, the rotary rows it looked up with their tables, and their markers.
        self._position_ids: Tensor | None = None
        self._clamped: Tensor | None = None
        self._tables: list[tuple[Tensor, Tensor, Tensor]] = []
        self._marked_rows: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}

    @contextlib.contextmanager
    def running(self, position_ids: Tensor) -> Iterator[Tensor]:
        """While one forward runs: gives the position ids to call the model with, padding moved to position 0.

        A learned position embedding cannot look up -1; the markers read the ids as they came.
        """
        self._position_ids, self._clamped = position_ids, position_ids.clamp(min=0)
        try:
            yield self._clamped
        finally:
            self._position_ids = self._clamped = None
            self._tables.clear()
            self._marked_rows.clear()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """While inside, the model computes with markers; everything is restored on the way out, also after an error."""
        with contextlib.ExitStack() as stack:
            self._registries(stack)
            layer = seam("transformers.cache_utils", "DynamicLayer")
            seam_of(layer, "update")
            _put(stack, layer, "update", self._cache_update(layer))
            for module in self.model.modules():
                self._module(stack, module)
            for file in _modelling_files(self.model):
                rotate = getattr(file, "apply_rotary_pos_emb", None)
                # Functions of that name that rotate one tensor, or take the table's halves in another order, stay.
                if rotate and tuple(inspect.signature(rotate).parameters)[:4] == ("q", "k", "cos", "sin"):
                    _put(stack, file, "apply_rotary_pos_emb", self._rotation(rotate))
            self._output_embeddings(stack)
            yield

    def _registries(self, stack: contextlib.ExitStack) -> None:
        for home, name, function in (
            ("transformers.modeling_utils", "ALL_ATTENTION_FUNCTIONS", self._attention()),
            ("transformers.masking_utils", "ALL_MASK_ATTENTION_FUNCTIONS", self._mask),
        ):
            registry = seam(home, name)
            names = seam_of(registry, "_global_mapping")
            seam_of(registry, "register")(IMPLEMENTATION, function)
            stack.callback(names.pop, IMPLEMENTATION)
        configs = {id(part.config): part.config for part in self.model.modules() if hasattr(part, "config")}
        for config in configs.values():
            _put(stack, config, "_attn_implementation_internal", IMPLEMENTATION)

    def _module(self, stack: contextlib.ExitStack, module: torch.nn.Module) -> None:
        if norm := probes.norm(module):
            _put(stack, module, "forward", norm)
        elif probes.looks_like_norm(module):
            self.unmarked.append(f"{type(module).__name__}: another norm formula")
        elif kind := probes.activation(module):
            _put(stack, module, "forward", functools.partial(_activate, kind=kind))
        elif hasattr(module, "inv_freq"):
            cos, sin = probes.rotary_table(module, self.positions)
            _put(stack, module, "forward", self._table(cos, sin))
        elif probes.product(module):
            _put(stack, module, "forward", functools.partial(_multiply, module))
        elif hasattr(module, "_update_causal_mask"):
            self._own_mask(stack, module)

    def _own_mask(self, stack: contextlib.ExitStack, module: Any) -> None:
        """Takes the place of a mask that a model makes without the registry, where it is a causal one."""

        def make(cached: int, new: int) -> Tensor:
            cache = seam("transformers", "DynamicCache")()
            if cached:
                cache.update(torch.zeros(1, 1, cached, 1), torch.zeros(1, 1, cached, 1), 0)
            seen, hidden = torch.ones(1, cached + new), torch.zeros(1, new, 1)
            mask: Tensor = module._update_causal_mask(seen, hidden, torch.arange(cached, cached + new), cache)
            return mask

        causal = probes.mask_tensor_is_causal(make, self.positions)

        def rule(*_: Any, **__: Any) -> MaskRule:
            if not causal:
                raise Refused(f"{type(module).__name__}: makes its own attention mask, not shown to be causal")
            return MaskRule(probes.CAUSAL)

        _put(stack, module, "_update_causal_mask", rule)

    def _cache_update(self, layer: Any) -> Callable[..., tuple[Tensor, Tensor]]:
        def update(cache: Any, keys: Tensor, values: Tensor, cache_kwargs: Any = None) -> tuple[Tensor, Tensor]:
            found: Any = type(cache)
            if found is not layer:
                raise Refused(f"the cache has a layer of class {found.__name__}, expected {layer.__name__}")
            if cache.keys is None:
                # The buffers that the graph is given: nothing is appended to them yet.
                cache.keys, cache.values, cache.is_initialized = keys, values, True
                cache.dtype, cache.device = keys.dtype, keys.device
            else:
                cache.keys = mark(CacheAppend, cache.keys, keys, self._position_ids)
                cache.values = mark(CacheAppend, cache.values, values, self._position_ids)
            return cache.keys, cache.values

        return update

    def _mask(self, *, mask_function: Any = None, attention_mask: Any = None, **_: Any) -> MaskRule:
        if mask_function is None:
            raise Refused("transformers does not say what the attention mask hides (no mask_function)")
        if attention_mask is not None:
            raise Refused("the model makes a padding mask of its own")
        heads = self.model.config.get_text_config().num_attention_heads
        return MaskRule(probes.mask_window(mask_function, positions=self.positions, heads=heads))

    def _attention(self) -> Callable[..., tuple[Tensor, None]]:
        def attention(
            module: Any,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Any,
            scaling: float | None = None,
            softcap: float | None = None,
            **rest: Any,
        ) -> tuple[Tensor, None]:
            name = type(module).__name__
            if not isinstance(attention_mask, MaskRule):
                raise Refused(f"{name}: builds its own attention mask")
            for argument, given in rest.items():
                if argument not in _WITHOUT_MEANING and given is not None and given is not False:
                    raise Refused(f"{name}: passes {argument!r} to its attention, which the marker does not know")
            window, named = attention_mask.window, rest.get("sliding_window")
            if isinstance(named, int) and named < self.positions and named != window:
                raise Refused(f"{name}: names a window of {named} tokens, its mask one of {window}")
            heads, head_dim, kv_heads = int(query.shape[1]), int(query.shape[3]), int(key.shape[1])
            if int(key.shape[3]) != head_dim or int(value.shape[3]) != head_dim:
                raise Refused(f"{name}: heads of q, k and v differ in size")
            scale = head_dim**-0.5 if scaling is None else float(scaling)
            soft_cap = float(softcap or 0)
            sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
            asked = (module, scale, soft_cap, *sizes.values())
            if asked not in self._probed:
                given = {"scaling": scaling, "softcap": softcap}
                keywords = {"dropout": 0.0, **{key: value for key, value in given.items() if value is not None}}
                reason = probes.attention_differs(
                    _eager_attention(module), module, scale=scale, soft_cap=soft_cap, keywords=keywords, **sizes
                )
                if reason:
                    raise Refused(f"{name}: {reason}")
                self._probed.add(asked)
            output = mark(
                Attention, query, key, value, self._position_ids, scale, soft_cap, window, heads, kv_heads, head_dim
            )
            return output, None

        return attention

    def _rotation(self, original: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
        kinds: dict[Any, probes.Rotation | None] = {}

        def rotate(
            q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *arguments: Any, **keywords: Any
        ) -> tuple[Tensor, Tensor]:
            if q.dim() != 4 or cos.dim() != 3:
                return original(q, k, cos, sin, *arguments, **keywords)
            sizes = {"heads": q.shape[1], "kv_heads": k.shape[1], "head_dim": q.shape[3], "width": cos.shape[2]}
            sizes = {size: int(value) for size, value in sizes.items()}
            call = (*sizes.values(), repr(arguments), repr(keywords))
            if call not in kinds:
                kinds[call] = probes.rotary_kind(original, arguments=arguments, keywords=keywords, **sizes)
            kind = kinds[call]
            rows = self._rows(cos, kind.from_halves) if kind else None
            if kind is None or rows is None:
                why = "another rotary formula" if kind is None else "its table is changed before it is used"
                reason = f"{original.__module__}.{original.__name__}: {why}"
                if reason not in self.unmarked:
                    self.unmarked.append(reason)
                return original(q, k, cos, sin, *arguments, **keywords)
            return mark(Rotary, q, *rows, kind.interleaved), mark(Rotary, k, *rows, kind.interleaved)

        return rotate

    def _table(self, cos: Tensor, sin: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
        """Returns a rotary embedding's forward: rows that mean what they are, and become a marker where it is used."""

        def forward(x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
            rows = cos[position_ids], sin[position_ids]
            if position_ids is self._clamped:
                self._tables.append((rows[0], cos, sin))
            return rows

        return forward

    def _rows(self, looked_up: Tensor, from_halves: bool) -> tuple[Tensor, Tensor] | None:
        """Returns the marked rows of the table that a rotation is given; None where they come from elsewhere."""
        for index, (rows, *table) in enumerate(self._tables):
            if rows is looked_up:
                asked = (index, from_halves)
                if asked not in self._marked_rows:
                    table = [probes.in_pairs(part) for part in table] if from_halves else table
                    self._marked_rows[asked] = mark(RotaryTable, self._position_ids, *table)
                return self._marked_rows[asked]
        return None

    def _output_embeddings(self, stack: contextlib.ExitStack) -> None:
        head = self.model.get_output_embeddings()
        if head is None:
            raise Refused(f"{type(self.model).__name__}: has no output embeddings")
        original, linear = head.forward, type(head) is torch.nn.Linear

        def forward(hidden: Tensor) -> Tensor:
            last = mark(LastToken, hidden, self._position_ids)
            logits: Tensor = mark(Head, last, head.weight, head.bias) if linear else original(last)
            return logits

        _put(stack, head, "forward", forward)


def seam_of(owner: Any, name: str) -> Any:
    """Returns an attribute of a seam.

    Raises:
        Refused: it is no longer there.
    """
    if not hasattr(owner, name):
        import transformers

        label = getattr(owner, "__name__", type(owner).__name__)
        raise Refused(f"transformers {transformers.__version__}: {label} has no {name}")
    return getattr(owner, name)


def _put(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    """Sets an attribute and has the stack take it back."""
    own = vars(owner)
    if name in own:
        stack.callback(setattr, owner, name, own[name])
    else:
        stack.callback(delattr, owner, name)
    setattr(owner, name, value)


def _activate(x: Tensor, kind: str) -> Tensor:
    activated: Tensor = mark(Activation, x, kind)
    return activated


def _multiply(module: Any, x: Tensor) -> Tensor:
    """What a Conv1D computes, as a matrix product that keeps the axes of x."""
    product: Tensor = x @ module.weight + module.bias
    return product


def _modelling_files(model: Any) -> list[ModuleType]:
    """Returns the Python modules that the classes of a model's modules come from, PyTorch's excepted."""
    names = {kind.__module__ for part in model.modules() for kind in type(part).__mro__}
    return [sys.modules[name] for name in sorted(names) if name in sys.modules and name.split(".")[0] != "torch"]


def _eager_attention(module: Any) -> Callable[..., Any]:
    """Returns the attention in plain PyTorch that lies beside the forward of an attention module.

    Raises:
        Refused: there is none to hold the marker against.
    """
    home = sys.modules[inspect.unwrap(type(module).forward).__module__]
    found: Callable[..., Any] | None = getattr(home, "eager_attention_forward", None)
    if found is None:
        raise Refused(f"{type(module).__name__}: {home.__name__} has no eager_attention_forward to compare with")
    return found
