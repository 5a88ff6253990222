"""Numeric probes: a module or function is replaced by a marker only where both give the same numbers.

Names and classes prove nothing: transformers moves and reuses them. Every probe runs the original beside the marker's
own formula on seeded inputs and answers None, or a reason, where they differ.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from rocline.export.markers.functions import ACTIVATIONS, Attention, RmsNorm, Rotary, mark
from rocline.export.markers.refusal import Refused

Tensor = torch.Tensor

CAUSAL = -1
"""The window of a mask that hides the future only."""


@dataclass(frozen=True)
class Norm:
    """A normalisation over the last axis.

    Attributes:
        kind: ``rms``, or ``layer`` for one that subtracts the mean and has no bias.
        weight: [n].
        epsilon: added to the mean square.
    """

    kind: str
    weight: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """Applies it to x [..., n]."""
        if self.kind == "layer":
            return functional.layer_norm(x, self.weight.shape, self.weight, None, self.epsilon)
        normed: Tensor = mark(RmsNorm, x, self.weight, self.epsilon)
        return normed


def norm(module: torch.nn.Module) -> Norm | None:
    """Returns what a module normalises with, or None where it is no norm that is known.

    The weight may be stored as it is or, as in Gemma, less one.
    """
    if not looks_like_norm(module):
        return None
    weight, epsilon = _weight_and_epsilon(module)
    x = torch.randn(3, 2, len(weight), generator=_generator()) + 0.5
    # Small values show where epsilon is added, large ones whether anything is clipped.
    probes = [x * scale for scale in (1.0, epsilon**0.5, 1e3)]
    for kind, scale in (("rms", weight), ("rms", (1 + weight).detach()), ("layer", weight)):
        found = Norm(kind, scale, epsilon)
        if all(_same(module, found, probe) for probe in probes):
            return found
    return None


def looks_like_norm(module: torch.nn.Module) -> bool:
    """Tells whether a module has a norm's parameters and no bias, whatever it computes."""
    weight, epsilon = _weight_and_epsilon(module)
    if not (isinstance(weight, Tensor) and weight.dim() == 1 and isinstance(epsilon, float)):
        return False
    return getattr(module, "bias", None) is None and _is_function(module)


def _weight_and_epsilon(module: torch.nn.Module) -> tuple[Any, Any]:
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return getattr(module, "weight", None), epsilon


def product(module: torch.nn.Module) -> bool:
    """Tells whether a module computes ``x @ weight + bias``, as GPT-2's Conv1D does, with weight [in, out]."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not (isinstance(weight, Tensor) and weight.dim() == 2 and isinstance(bias, Tensor) and _is_function(module)):
        return False
    x = torch.randn(3, 2, weight.shape[0], generator=_generator())
    return bias.shape == weight.shape[1:] and _same(module, lambda x: x @ weight + bias, x)


def activation(module: torch.nn.Module) -> str | None:
    """Returns the kind of `ACTIVATIONS` that a module computes, or None."""
    if next(module.parameters(), None) is not None or not _is_function(module):
        return None
    if not type(module).__module__.startswith(("transformers.activations", "torch.nn.modules.activation")):
        return None
    x = torch.cat((torch.linspace(-12, 12, 97), torch.randn(64, generator=_generator())))
    return next((kind for kind, function in ACTIVATIONS.items() if _same(module, function, x, tolerance=1e-6)), None)


def _is_function(module: torch.nn.Module) -> bool:
    """Tells whether a module has no parts and is called with one tensor and nothing else."""
    return next(module.children(), None) is None and len(inspect.signature(module.forward).parameters) == 1


@dataclass(frozen=True)
class Rotation:
    """How a function rotates.

    Attributes:
        interleaved: pairs are neighbours instead of halves.
        from_halves: its table has equal halves all the same.
    """

    interleaved: bool
    from_halves: bool = False


def rotary_kind(
    rotate: Callable[..., tuple[Tensor, Tensor]],
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    width: int,
    arguments: Sequence[Any] = (),
    keywords: Mapping[str, Any] = {},
) -> Rotation | None:
    """Tells how a function rotates q and k, or None where it does something else.

    Args:
        rotate: ``rotate(q, k, cos, sin, *arguments, **keywords)`` with q, k [B, H, T, D] and cos, sin [B, T, R].
        heads, kv_heads, head_dim, width: H of q, H of k, D and R.
    """
    generator = _generator()
    q = torch.randn(2, heads, 3, head_dim, generator=generator)
    k = torch.randn(2, kv_heads, 3, head_dim, generator=generator)
    # Not a cosine and sine of anything: a formula that relies on cos² + sin² = 1 is another one.
    angles = [torch.randn(2, 3, width // 2, generator=generator) for _ in range(2)]
    halves = [torch.cat((part, part), -1) for part in angles]
    pairs = [in_pairs(part) for part in halves]
    for rotation, given, table in (
        (Rotation(interleaved=False), halves, halves),
        (Rotation(interleaved=True), pairs, pairs),
        (Rotation(interleaved=True, from_halves=True), halves, pairs),
    ):
        try:
            rotated = rotate(q, k, *given, *arguments, **keywords)
        except Exception:  # whatever it wants, it is not called like this
            return None
        marked = [mark(Rotary, x, *table, rotation.interleaved) for x in (q, k)]
        if len(rotated) == 2 and all(_close(a, b) for a, b in zip(rotated, marked, strict=True)):
            return rotation
    return None


def in_pairs(table: Tensor) -> Tensor:
    """Returns a rotary table [..., R] of equal halves with each angle twice in a row instead."""
    return table[..., : table.shape[-1] // 2].repeat_interleave(2, -1)


def rotary_table(module: torch.nn.Module, positions: int) -> tuple[Tensor, Tensor]:
    """Returns the cosines and sines [positions, R] that a rotary embedding module gives, scaling included.

    Raises:
        Refused: they are no function of the position alone (dynamic NTK, longrope), or the module is called otherwise.
    """
    name = type(module).__name__
    probe = copy.deepcopy(module)  # those that depend on the length keep it
    x = torch.zeros(1, 1, 1)

    def rows(ids: Tensor) -> tuple[Tensor, Tensor]:
        try:
            cos, sin = probe(x, ids[None])
            return cos[0].clone(), sin[0].clone()
        except Exception as error:
            raise Refused(f"{name}: cannot be asked for its table: {error}") from error

    few = torch.arange(min(8, positions))
    early = rows(few)
    # Far past every length that a config may name as the original or the largest one.
    late = rows(torch.cat((few, torch.tensor([64 * positions]))))
    cos, sin = rows(torch.arange(positions))
    if cos.dim() != 2 or cos.shape != sin.shape or len(cos) != positions:
        raise Refused(f"{name}: gives tables {tuple(cos.shape)} and {tuple(sin.shape)}, expected [positions, width]")
    for part, table in ((0, cos), (1, sin)):
        if not (_close(early[part], late[part][:-1]) and _close(early[part], table[: len(few)])):
            raise Refused(f"{name}: its rotary table depends on the sequence's length")
    return cos, sin


def mask_window(mask_function: Callable[..., Any], *, positions: int, heads: int) -> int:
    """Returns the window of a mask: a query at q sees the slots (q - window, q]; `CAUSAL` where it sees all up to q.

    Args:
        mask_function: transformers' own: (batch, head, query, key) -> visible.
        positions: queries and keys are below it.
        heads: heads are below it.

    Raises:
        Refused: the mask is neither causal nor a causal sliding window.
    """
    first, last = torch.tensor(0), torch.tensor(heads - 1)

    def seen(query: Tensor, head: Tensor) -> Tensor:
        visible = mask_function(first, head, query[:, None], torch.arange(positions)[None])
        return torch.as_tensor(visible).expand(len(query), positions)

    window = int(seen(torch.tensor([positions - 1]), first).sum())
    edges = {positions - 1, window - 1, window, window + 1, *range(16), *(1 << bit for bit in range(20))}
    edges |= {edge + delta for edge in list(edges) for delta in (-1, 1)}
    edges |= {positions * part // 17 for part in range(17)}
    queries = torch.tensor(sorted(edge for edge in edges if 0 <= edge < positions))
    slots = torch.arange(positions)[None]
    expected = (slots <= queries[:, None]) & (slots > queries[:, None] - window)
    if not all(torch.equal(seen(queries, head).bool(), expected) for head in (first, last)):
        raise Refused("its attention mask is neither causal nor a causal sliding window")
    return CAUSAL if window == positions else window


def mask_tensor_is_causal(make: Callable[[int, int], Tensor], positions: int) -> bool:
    """Tells whether masks that a model builds itself are causal, at both ends of the positions it has.

    Args:
        make: (tokens in the cache, new tokens) -> additive mask [1, 1, new, cached + new].
        positions: the largest of cached + new.
    """
    new = min(16, positions)
    for cached in (0, positions - new):
        try:
            mask = make(cached, new)
        except Exception:  # another signature, another meaning
            return False
        causal = torch.arange(cached + new)[None] <= torch.arange(cached, cached + new)[:, None]
        if not isinstance(mask, Tensor) or mask.shape != (1, 1, *causal.shape):
            return False
        hidden = torch.finfo(mask.dtype).min
        if not torch.equal(mask[0, 0], torch.where(causal, 0.0, hidden)):
            return False
    return True


def attention_differs(
    eager: Callable[..., Any],
    module: torch.nn.Module,
    *,
    scale: float,
    soft_cap: float,
    heads: int,
    kv_heads: int,
    head_dim: int,
    keywords: Mapping[str, Any],
) -> str | None:
    """Returns why a module's attention is not what `Attention` means, or None where it is.

    Args:
        eager: the module's own attention in plain PyTorch, ``eager(module, q, k, v, mask, **keywords)``.
        module: the attention module, whose attributes ``eager`` reads.
        scale, soft_cap, heads, kv_heads, head_dim: the marker's attributes.
        keywords: what the module passes to its attention.
    """
    generator = _generator()
    new, slots = 3, 5
    q = torch.randn(1, heads, new, head_dim, generator=generator) * 3
    k, v = (torch.randn(1, kv_heads, slots, head_dim, generator=generator) for _ in range(2))
    positions = torch.arange(slots - new, slots)
    seen = torch.arange(slots)[None] <= positions[:, None]
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    marked = mark(Attention, q, k, v, positions[None], scale, soft_cap, CAUSAL, heads, kv_heads, head_dim)
    try:
        output = eager(module, q, k, v, mask, **keywords)[0]
    except Exception as error:
        return f"its eager attention cannot be asked: {error}"
    return None if _close(output, marked) else "its eager attention gives other numbers"


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _same(
    module: Callable[[Tensor], Tensor], formula: Callable[[Tensor], Tensor], x: Tensor, *, tolerance: float = 1e-5
) -> bool:
    try:
        return _close(module(x.clone()), formula(x), tolerance)
    except Exception:  # what cannot be called like the formula is not the formula
        return False


def _close(got: Any, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return (
        isinstance(got, Tensor)
        and got.shape == expected.shape
        and got.dtype == expected.dtype
        and torch.allclose(got, expected, rtol=tolerance, atol=tolerance)
    )
