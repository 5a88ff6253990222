# ruff: noqa: D102 - forward and symbolic are what PyTorch asks of a Function; the class says what they compute.
"""The marker operators: what a PyTorch module means, as one node of the traced graph.

Each is an autograd Function whose ``forward`` is the meaning and whose ``symbolic`` is the node, in the domain
`rocline.custom_ops.rewriting.MARKERS`. They compute in the dtype they are given, which is float32 wherever rocline
traces. Sizes that the lowering needs and that the tracer loses are attributes.

Letters in shapes: B batch, T new tokens, S capacity of the cache, H heads, K heads of keys and values, D head, R width
of the rotary table, P positions it has.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function

from rocline.custom_ops.rewriting import MARKERS

Tensor = torch.Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}
"""The kinds of `Activation`. Those that PyTorch exports as one node, such as relu, need no marker."""


def mark(marker: type[Function], *arguments: Any) -> Any:
    """Computes a marker, and records its node where a graph is being traced."""
    return marker.apply(*arguments)  # type: ignore[no-untyped-call]


def _node(graph: Any, name: str, *inputs: Any, **attributes: Any) -> Any:
    return graph.op(f"{MARKERS}::{name}", *inputs, **attributes)


def _typed(value: Any, like: Any, sizes: list[int | None] | None = None) -> Any:
    """Gives a node's output the dtype of another value, and its shape unless ``sizes`` says otherwise."""
    return value.setType(like.type().with_sizes(sizes) if sizes else like.type())


class RmsNorm(Function):
    """``x / sqrt(mean(x²) + epsilon) * weight`` over the last axis: x [..., n], weight [n] -> [..., n]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight

    @staticmethod
    def symbolic(graph: Any, x: Any, weight: Any, epsilon: float) -> Any:
        return _typed(_node(graph, "RmsNorm", x, weight, epsilon_f=epsilon), x)


class Rotary(Function):
    """Rotary position embedding of each head's first R elements: x [B, H, T, D], cos, sin [B, T, R] -> [B, H, T, D].

    Pairs are (i, i + R/2), or (2i, 2i + 1) where ``interleaved``; the table holds each pair's angle at both places.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        width = cos.shape[-1]
        turned, rest = x[..., :width], x[..., width:]
        if interleaved:
            across = torch.stack((-turned[..., 1::2], turned[..., ::2]), -1).flatten(-2)
        else:
            first, second = turned.chunk(2, -1)
            across = torch.cat((-second, first), -1)
        return torch.cat((turned * cos.unsqueeze(1) + across * sin.unsqueeze(1), rest), -1)

    @staticmethod
    def symbolic(graph: Any, x: Any, cos: Any, sin: Any, interleaved: bool) -> Any:
        return _typed(_node(graph, "Rotary", x, cos, sin, interleaved_i=int(interleaved)), x)


class RotaryTable(Function):
    """Rows of a rotary table: position_ids [B, T], cos, sin [P, R] -> cos, sin [B, T, R]. Padding (-1) gets any row."""

    @staticmethod
    def forward(ctx: Any, position_ids: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return cos[position_ids], sin[position_ids]

    @staticmethod
    def symbolic(graph: Any, position_ids: Any, cos: Any, sin: Any) -> Any:
        outputs = _node(graph, "RotaryTable", position_ids, cos, sin, outputs=2)
        sizes = [*(position_ids.type().sizes() or [None, None]), cos.type().sizes()[-1]]
        return tuple(_typed(output, cos, sizes) for output in outputs)


class CacheAppend(Function):
    """Stores new keys or values in the cache: past [B, K, S, D], new [B, K, T, D], position_ids [B, T] -> [B, K, S, D].

    The token at position p goes to slot p; one at -1 is not stored.
    """

    @staticmethod
    def forward(ctx: Any, past: Tensor, new: Tensor, position_ids: Tensor) -> Tensor:
        present = past.clone()
        rows, tokens = (position_ids >= 0).nonzero(as_tuple=True)
        present[rows, :, position_ids[rows, tokens]] = new[rows, :, tokens]
        return present

    @staticmethod
    def symbolic(graph: Any, past: Any, new: Any, position_ids: Any) -> Any:
        return _typed(_node(graph, "CacheAppend", past, new, position_ids), past)


class Attention(Function):
    """Attention over the cache: q [B, H, T, D], k, v [B, K, S, D], position_ids [B, T] -> [B, T, H, D].

    A query at position p sees the slots (p - window, p], all up to p where ``window`` is -1; one at -1 gives zeros.
    Scores are ``scale * q·k``, bent by ``soft_cap * tanh(score / soft_cap)`` where that is not 0. Query head h reads
    head h // (H / K) of keys and values. ``heads``, ``kv_heads`` and ``head_dim`` are H, K and D.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        position_ids: Tensor,
        scale: float,
        soft_cap: float,
        window: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
    ) -> Tensor:
        k, v = (part.repeat_interleave(heads // kv_heads, 1) for part in (k, v))
        scores = q @ k.transpose(2, 3) * scale
        if soft_cap:
            scores = torch.tanh(scores / soft_cap) * soft_cap
        slot, position = torch.arange(k.shape[2]), position_ids[:, None, :, None]
        seen = (slot <= position) & (slot > position - window) if window >= 0 else slot <= position
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(position < 0, 0.0)
        return (weights @ v).transpose(1, 2).contiguous()

    @staticmethod
    def symbolic(
        graph: Any,
        q: Any,
        k: Any,
        v: Any,
        position_ids: Any,
        scale: float,
        soft_cap: float,
        window: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
    ) -> Any:
        attributes = {
            "scale_f": scale,
            "soft_cap_f": soft_cap,
            "window_i": window,
            "heads_i": heads,
            "kv_heads_i": kv_heads,
            "head_dim_i": head_dim,
        }
        node = _node(graph, "Attention", q, k, v, position_ids, **attributes)
        return _typed(node, q, [None, None, heads, head_dim])


class Activation(Function):
    """One of `ACTIVATIONS`, element by element: x [...] -> [...]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str) -> Tensor:
        return ACTIVATIONS[kind](x)

    @staticmethod
    def symbolic(graph: Any, x: Any, kind: str) -> Any:
        return _typed(_node(graph, "Activation", x, kind_s=kind), x)


class LastToken(Function):
    """The hidden state of each row's last position: hidden [B, T, n], position_ids [B, T] -> [B, 1, n]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, position_ids: Tensor) -> Tensor:
        rows = torch.arange(hidden.shape[0])
        return hidden[rows, position_ids.argmax(1)].unsqueeze(1)

    @staticmethod
    def symbolic(graph: Any, hidden: Any, position_ids: Any) -> Any:
        sizes = hidden.type().sizes()
        return _typed(_node(graph, "LastToken", hidden, position_ids), hidden, [None, 1, sizes[-1]] if sizes else None)


class Head(Function):
    """The product with the output embeddings: x [B, 1, n], weight [V, n], bias [V] or None -> [B, 1, V].

    No marker: it is a Gemm of matrices, which reads the weight as it lies. A MatMul wants it transposed, and where
    the token embedding shares it that is a second copy.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    def symbolic(graph: Any, x: Any, weight: Any, bias: Any) -> Any:
        axis = graph.op("Constant", value_t=torch.tensor([1]))
        given = [] if bias is None or bias.node().mustBeNone() else [bias]
        product = graph.op("Gemm", graph.op("Squeeze", x, axis), weight, *given, transB_i=1)
        return _typed(graph.op("Unsqueeze", product, axis), x, [None, 1, weight.type().sizes()[0]])
