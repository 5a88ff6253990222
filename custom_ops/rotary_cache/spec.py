"""RotaryCache: rotate q and k by each token's position and store k and v in that slot of a fixed cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rocline.custom_ops.schema import Argument, Benchmark, Case, Refusal, Shape, Spec, Tolerance

if TYPE_CHECKING:
    import numpy as np

    from rocline.custom_ops.schema import Source

IN_PLACE = {"present_k": "past_k", "present_v": "past_v"}


def _infer(shapes: Mapping[str, Shape], attributes: Mapping[str, Any]) -> dict[str, Shape]:
    batch, tokens, _ = shapes["q"]
    rotated = (batch, tokens, attributes["heads"] * shapes["past_k"][3])
    return {"q_rotated": rotated, "present_k": shapes["past_k"], "present_v": shapes["past_v"]}


def positions(*rows: list[int]) -> Callable[[np.random.Generator], Any]:
    """The position_ids of a batch, a list a row."""

    def make(_: np.random.Generator) -> Any:
        import numpy as np

        return np.array(rows, np.int64)

    return make


def table(rows: int, rotary_dim: int, sine: bool) -> Callable[[np.random.Generator], Any]:
    """[rows, rotary_dim / 2]: the cosine or sine of row / 10000^(2i / rotary_dim)."""

    def make(_: np.random.Generator) -> Any:
        import numpy as np

        angle = np.arange(rows)[:, None] / 10000.0 ** (np.arange(0, rotary_dim, 2) / max(rotary_dim, 1))
        return (np.sin(angle) if sine else np.cos(angle)).astype(np.float32)

    return make


def inputs(
    heads: int, kv_heads: int, head: int, capacity: int, *rows: list[int], rotary: int | None = None, **more: Source
) -> dict[str, Source]:
    """The inputs of a batch whose row i has tokens at the positions ``rows[i]``."""
    batch, tokens, rotary = len(rows), len(rows[0]), head if rotary is None else rotary
    return {
        "q": (batch, tokens, heads * head),
        "k": (batch, tokens, kv_heads * head),
        "v": (batch, tokens, kv_heads * head),
        "past_k": (batch, kv_heads, capacity, head),
        "past_v": (batch, kv_heads, capacity, head),
        "position_ids": positions(*rows),
        "cos": table(capacity, rotary, sine=False),
        "sin": table(capacity, rotary, sine=True),
        **more,
    }


def packed(heads: int, kv_heads: int, head: int, capacity: int, *rows: list[int], **more: Any) -> dict[str, Source]:
    """`inputs` with q, k and v of each token side by side."""
    made = inputs(heads, kv_heads, head, capacity, *rows, **more)
    return {**made, "q": (len(rows), len(rows[0]), (heads + 2 * kv_heads) * head), "k": (0,), "v": (0,)}


def _case(name: str, heads: int, kv_heads: int, made: Mapping[str, Source], in_place: bool = True, **more: Any) -> Case:
    attributes = {"heads": heads, "kv_heads": kv_heads, **more}
    return Case(name, made, attributes, alias=IN_PLACE if in_place else {})


def _run(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


_REFUSED = inputs(4, 2, 8, 16, [3, 4])

SPEC = Spec(
    name="RotaryCache",
    inputs=[
        Argument("q", shape="[batch, tokens, heads * head], or (heads + 2 kv_heads) * head with k and v beside q"),
        Argument("k", shape="[batch, tokens, kv_heads * head], or [0] where q holds it"),
        Argument("v", shape="[batch, tokens, kv_heads * head], or [0] where q holds it"),
        Argument("past_k", shape="[batch, kv_heads, capacity, head]"),
        Argument("past_v", shape="[batch, kv_heads, capacity, head]"),
        Argument("position_ids", "int64", shape="[batch, tokens]; -1 is padding"),
        Argument("cos", "float32", shape="[positions, rotary_dim / 2], or no elements for no rotation"),
        Argument("sin", "float32", shape="[positions, rotary_dim / 2], or no elements for no rotation"),
        Argument("q_norm", optional=True, shape="[head], or no elements for none"),
        Argument("k_norm", optional=True, shape="[head], or no elements for none"),
    ],
    outputs=[
        Argument("q_rotated", shape="[batch, tokens, heads * head]; padding is zero"),
        Argument("present_k", shape="past_k's"),
        Argument("present_v", shape="past_v's"),
    ],
    attributes={"heads": 0, "kv_heads": 0, "interleaved": 0, "rotary_dim": 0, "epsilon": 1e-6},
    infer=_infer,
    tolerances={
        "float32": Tolerance(2e-6, 4e-6),
        # Half a unit in the last place of the result, and what float32 sums put on top of it.
        "float16": Tolerance(1e-3, 2e-6),
        "bfloat16": Tolerance(8e-3, 1e-5),
    },
    output_tolerances={"present_v": {}},
    cases=[
        _case("decode", 9, 3, inputs(9, 3, 64, 40, [17])),
        _case("decode unbound", 9, 3, inputs(9, 3, 64, 40, [17]), in_place=False),
        _case("rows at their own positions", 4, 2, inputs(4, 2, 32, 24, [0], [23], [-1], [7])),
        _case("prefill", 4, 1, inputs(4, 1, 80, 33, _run(0, 19))),
        _case("prefill unbound", 4, 1, inputs(4, 1, 80, 33, _run(0, 19)), in_place=False),
        _case("ragged prefill", 4, 4, inputs(4, 4, 96, 16, [-1, -1, 0, 1], [0, 1, 2, 3], [12, 13, -1, -1])),
        _case("scattered positions", 2, 2, inputs(2, 2, 128, 64, [9, 3, 40, 12, 63])),
        _case("unbound row of padding", 2, 1, inputs(2, 1, 16, 9, [-1, -1], [4, 5]), in_place=False),
        _case("interleaved", 8, 2, inputs(8, 2, 128, 12, _run(2, 7)), interleaved=1),
        _case("interleaved partial", 3, 1, inputs(3, 1, 64, 12, _run(0, 5), rotary=24), interleaved=1, rotary_dim=24),
        _case("partial", 5, 5, inputs(5, 5, 80, 12, _run(4, 5), rotary=32), rotary_dim=32),
        _case("odd partial", 2, 2, inputs(2, 2, 19, 12, _run(4, 5), rotary=6), rotary_dim=6),
        _case("no rotation", 2, 1, inputs(2, 1, 40, 8, [6, 7], rotary=0)),
        _case("norms", 8, 4, inputs(8, 4, 128, 8, _run(0, 6), q_norm=(128,), k_norm=(128,))),
        _case("norms of odd heads", 3, 3, inputs(3, 3, 111, 8, _run(1, 3), rotary=0, q_norm=(111,), k_norm=(111,))),
        _case("interleaved norms", 4, 2, inputs(4, 2, 256, 8, [5], q_norm=(256,), k_norm=(256,)), interleaved=1),
        _case("norm of k alone", 2, 1, inputs(2, 1, 64, 8, [5], q_norm=(0,), k_norm=(64,)), epsilon=1e-3),
        _case("norm of q alone", 2, 1, inputs(2, 1, 64, 8, [5], q_norm=(64,)), epsilon=0.5),
        _case("packed decode", 9, 3, packed(9, 3, 64, 40, [17])),
        _case("packed prefill unbound", 4, 1, packed(4, 1, 80, 33, _run(0, 19), [-1, *_run(7, 18)]), in_place=False),
        _case("packed partial", 3, 3, packed(3, 3, 19, 12, _run(4, 5), rotary=6), rotary_dim=6),
        _case("packed norms", 8, 4, packed(8, 4, 128, 8, _run(0, 6), q_norm=(128,), k_norm=(128,))),
        _case("packed interleaved", 8, 2, packed(8, 2, 64, 12, _run(2, 7)), interleaved=1),
        _case("packed, no rotation", 2, 1, packed(2, 1, 37, 8, [6, 7], rotary=0)),
        _case("packed, no tokens", 4, 2, packed(4, 2, 32, 8, [], [])),
        _case("head of two", 1, 1, inputs(1, 1, 2, 3, [0, 1, 2])),
        _case("interleaved head of six", 2, 1, inputs(2, 1, 6, 3, [2, 1, 0]), interleaved=1),
        _case("no tokens", 4, 2, inputs(4, 2, 32, 8, [], [])),
        _case("no tokens unbound", 4, 2, inputs(4, 2, 32, 8, [], []), in_place=False),
        _case(
            "no rows",
            4,
            2,
            {
                **inputs(4, 2, 32, 8, [1]),
                **{
                    "q": (0, 1, 128),
                    "k": (0, 1, 64),
                    "v": (0, 1, 64),
                    "past_k": (0, 2, 8, 32),
                    "past_v": (0, 2, 8, 32),
                    "position_ids": (0, 1),
                },
            },
        ),
        _case("several threads", 32, 8, inputs(32, 8, 128, 80, _run(3, 37), _run(0, 37))),
    ],
    refusals=[
        Refusal(_case("heads do not divide", 3, 2, _REFUSED), r"RotaryCache: attributes 'heads' 3 and 'kv_heads' 2"),
        Refusal(_case("odd rotary_dim", 4, 2, _REFUSED, rotary_dim=3), r"attribute 'rotary_dim' 3: expected an even"),
        Refusal(
            _case("rank of q", 4, 2, {**_REFUSED, "q": (1, 2, 4, 8)}),
            r"RotaryCache: input 'q': \w+ \[1, 2, 4, 8\], expected \[batch, tokens, 4 heads \* head\]",
        ),
        Refusal(
            _case("heads of k", 4, 2, {**_REFUSED, "k": (1, 2, 24)}),
            r"RotaryCache: input 'k': \w+ \[1, 2, 24\], expected .* \[1, 2, 16\] to match 'q' \[1, 2, 32\]",
        ),
        Refusal(
            _case("packed without k and v", 4, 2, {**packed(4, 2, 8, 16, [3, 4]), "q": (1, 2, 36)}),
            r"RotaryCache: input 'q': \w+ \[1, 2, 36\], expected \[batch, tokens, 8 heads \* head\], since 'k' has no",
        ),
        Refusal(
            _case("packed with a v", 4, 2, {**packed(4, 2, 8, 16, [3, 4]), "v": (1, 2, 16)}),
            r"input 'v': \w+ \[1, 2, 16\], expected no elements \[0\]",
        ),
        Refusal(_case("tokens of v", 4, 2, {**_REFUSED, "v": (1, 3, 16)}), r"input 'v': \w+ \[1, 3, 16\], expected"),
        Refusal(
            _case("heads of the cache", 4, 2, {**_REFUSED, "past_k": (1, 4, 16, 8)}),
            r"input 'past_k': \w+ \[1, 4, 16, 8\], expected .* \[1, 2, capacity, 8\]",
        ),
        Refusal(_case("two capacities", 4, 2, {**_REFUSED, "past_v": (1, 2, 15, 8)}), r"input 'past_v': .* 'past_k'"),
        Refusal(
            _case("rank of the positions", 4, 2, {**_REFUSED, "position_ids": (2,)}),
            r"input 'position_ids': int64 \[2\], expected \[batch, tokens\] \[1, 2\]",
        ),
        Refusal(
            _case("past the cache", 4, 2, {**_REFUSED, "position_ids": positions([15, 16])}),
            r"RotaryCache: input 'position_ids': int64 \[1, 2\], expected positions from -1 .* 15, found 16 in row 0",
        ),
        Refusal(
            _case(
                "past the tables", 4, 2, {**_REFUSED, "cos": (9, 4), "sin": (9, 4), "position_ids": positions([8, 9])}
            ),
            r"expected positions from -1 \(padding\) to 8, found 9 in row 0",
        ),
        Refusal(_case("below padding", 4, 2, {**_REFUSED, "position_ids": positions([0, -2])}), r"found -2 in row 0"),
        Refusal(
            _case("width of the tables", 4, 2, {**_REFUSED, "cos": (16, 3), "sin": (16, 3)}),
            r"input 'cos': float32 \[16, 3\], expected \[positions, 4\]",
        ),
        Refusal(
            _case("two tables", 4, 2, {**_REFUSED, "sin": (15, 4)}), r"input 'sin': .* expected the shape of 'cos'"
        ),
        Refusal(_case("size of a norm", 4, 2, {**_REFUSED, "q_norm": (7,)}), r"input 'q_norm': .* expected \[8\]"),
    ],
    benchmarks=[
        # Read and written once: q; k and v; the caches are bound in place and only their new slots are touched.
        Benchmark(
            _case("prefill 8 x 2048", 32, 8, inputs(32, 8, 128, 2048, *[_run(0, 2048)] * 8)),
            bytes=2 * 8 * 2048 * (32 + 2 * 8) * 128 * 2,
        ),
        Benchmark(
            _case("packed prefill 8 x 2048", 32, 8, packed(32, 8, 128, 2048, *[_run(0, 2048)] * 8)),
            bytes=2 * 8 * 2048 * (32 + 2 * 8) * 128 * 2,
        ),
        Benchmark(
            _case("decode 64 rows", 32, 8, inputs(32, 8, 128, 4096, *[[4095]] * 64)),
            bytes=2 * 64 * (32 + 2 * 8) * 128 * 2,
        ),
    ],
)
