"""CachedAttention: grouped-query attention over a fixed cache, or over keys and values of this run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rocline.custom_ops.schema import Argument, Benchmark, Case, Refusal, Shape, Spec, Tolerance

if TYPE_CHECKING:
    import numpy as np

    from rocline.custom_ops.schema import Source

# The sizes that op.cc and params.h name: rows that are decoded together, the most rows that are, the most pieces.
_CHUNK, _DECODED, _MOST_SPLITS = 16, 32, 64


def _splits(batch: int, heads: int, kv_heads: int, queries: int, keys: int) -> int:
    rows = queries * heads // kv_heads
    if queries != 1 and rows > _DECODED:
        return 1
    blocks = max(1, batch * kv_heads * -(-rows // _CHUNK))
    return max(1, min(-(-1024 // blocks), -(-keys // 128), _MOST_SPLITS))


def _infer(shapes: Mapping[str, Shape], attributes: Mapping[str, Any]) -> dict[str, Shape]:
    batch, queries, _ = shapes["q"]
    _, kv_heads, keys, head = shapes["present_k"]
    splits = _splits(batch, attributes["heads"], kv_heads, queries, keys)
    size = 0 if splits == 1 else batch * queries * attributes["heads"] * splits * (head + 2)
    return {"y": shapes["q"], "workspace": (size,)}


def positions(*rows: list[int]) -> Callable[[np.random.Generator], Any]:
    """The position_ids of a batch, a list a row."""

    def make(_: np.random.Generator) -> Any:
        import numpy as np

        return np.array(rows, np.int64)

    return make


def poisoned(shape: Shape, live: list[int] | int) -> Callable[[np.random.Generator], Any]:
    """A cache whose slots from ``live`` on (one number, or one a row) hold NaN, which no query may see."""

    def make(rng: np.random.Generator) -> Any:
        import numpy as np

        cache = rng.standard_normal(shape, dtype=np.float32)
        for row in range(shape[0]):
            cache[row, :, live if isinstance(live, int) else live[row] :] = np.nan
        return cache

    return make


def masked_bias(shape: Shape) -> Callable[[np.random.Generator], Any]:
    """A bias with every third key masked by minus infinity."""

    def make(rng: np.random.Generator) -> Any:
        import numpy as np

        bias = rng.standard_normal(shape, dtype=np.float32)
        bias[..., ::3] = -np.inf
        return bias

    return make


def inputs(heads: int, kv_heads: int, head: int, keys: int, *rows: list[int], **more: Source) -> dict[str, Source]:
    """The inputs of a batch whose row i has queries at the positions ``rows[i]``; slots above them hold NaN."""
    batch, queries = len(rows), len(rows[0])
    cache = poisoned((batch, kv_heads, keys, head), [max([-1, *row]) + 1 for row in rows])
    return {
        "q": (batch, queries, heads * head),
        "present_k": cache,
        "present_v": cache,
        "position_ids": positions(*rows),
        **more,
    }


def _plain(heads: int, kv_heads: int, head: int, queries: int, *mask: list[int], **more: Source) -> dict[str, Source]:
    """The inputs of ``causal = 0``: row i's keys are shown where ``mask[i]`` is 0 and hidden, full of NaN, at -1."""
    shape = (len(mask), kv_heads, len(mask[0]), head)

    def make(rng: np.random.Generator) -> Any:
        import numpy as np

        values = rng.standard_normal(shape, dtype=np.float32)
        return np.where(np.array(mask)[:, None, :, None] < 0, np.nan, values)

    return {
        "q": (len(mask), queries, heads * head),
        "present_k": make,
        "present_v": make,
        "position_ids": positions(*mask),
        **more,
    }


def _case(name: str, heads: int, kv_heads: int, made: Mapping[str, Source], outputs: int = 2, **more: Any) -> Case:
    return Case(name, made, {"heads": heads, "kv_heads": kv_heads, **more}, outputs=outputs)


def _run(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def _mask(shown: int, hidden: int) -> list[int]:
    return [0] * shown + [-1] * hidden


_REFUSED = inputs(4, 2, 8, 16, [3, 4])
_DECODE = inputs(32, 8, 128, 16384, *[[16383]] * 8)

SPEC = Spec(
    name="CachedAttention",
    inputs=[
        Argument("q", shape="[batch, queries, heads * head], head at most 256"),
        Argument("present_k", shape="[batch, kv_heads, keys, head]; keys: the cache's capacity, or this run's"),
        Argument("present_v", shape="[batch, kv_heads, keys, head]"),
        Argument("position_ids", "int64", shape="[batch, queries]; with causal = 0 [batch, keys]; -1 is padding"),
        Argument("bias", optional=True, shape="[1 or batch, 1 or heads, 1 or queries, keys], or no elements for none"),
    ],
    outputs=[
        Argument("y", shape="q's; padding, and queries that see nothing, are zero"),
        Argument("workspace", "float32", optional=True, shape="[size]; without it the device cannot split decoding"),
    ],
    attributes={"heads": 0, "kv_heads": 0, "scale": 0.0, "window": 0, "soft_cap": 0.0, "causal": 1},
    infer=_infer,
    tolerances={
        "float32": Tolerance(1e-5, 4e-6),
        # Half a unit in the last place of the result, and what float32 scores put on top of it.
        "float16": Tolerance(1e-3, 1e-5),
        "bfloat16": Tolerance(8e-3, 1e-5),
    },
    output_tolerances={"workspace": None},
    cases=[
        _case("decode", 9, 3, inputs(9, 3, 64, 300, [257])),
        _case("decode without workspace", 9, 3, inputs(9, 3, 64, 300, [257]), outputs=1),
        _case("decode of rows apart", 8, 2, inputs(8, 2, 128, 400, [0], [399], [-1], [127], [128])),
        _case("decode of the first token", 4, 4, inputs(4, 4, 32, 1, [0])),
        _case("decode of eight heads a group", 16, 2, inputs(16, 2, 80, 150, [101])),
        _case("decode of one key head", 7, 1, inputs(7, 1, 96, 150, [149])),
        _case("decode of a large group", 71, 1, inputs(71, 1, 64, 140, [130])),
        _case("decode of large heads", 4, 2, inputs(4, 2, 256, 300, [290], [17])),
        _case("decode of small heads", 4, 2, inputs(4, 2, 8, 300, [290], [17])),
        _case("decode of odd heads", 6, 3, inputs(6, 3, 37, 200, [190])),
        _case("decode in a window", 6, 2, inputs(6, 2, 64, 600, [500], [3]), window=100),
        _case("decode in a window of one", 2, 1, inputs(2, 1, 64, 300, [200]), window=1),
        _case("decode with a soft cap", 8, 4, inputs(8, 4, 128, 300, [200]), soft_cap=5.0, scale=0.3),
        _case("decode with a bias", 6, 2, inputs(6, 2, 64, 300, [290], [4], bias=masked_bias((1, 6, 1, 300)))),
        _case("two tokens", 12, 4, inputs(12, 4, 64, 300, [255, 256], [0, 1])),
        _case("eight tokens of a few rows", 4, 1, inputs(4, 1, 128, 260, _run(200, 8), [-1, -1, *_run(0, 6)])),
        _case("prefill", 9, 3, inputs(9, 3, 64, 130, _run(0, 111))),
        _case("prefill of a chunk", 8, 2, inputs(8, 2, 128, 256, _run(150, 70))),
        _case(
            "ragged prefill",
            4,
            1,
            inputs(4, 1, 32, 90, [*[-1] * 31, *_run(0, 40)], _run(0, 71), [*_run(5, 19), *[-1] * 52]),
        ),
        _case("prefill of scattered positions", 2, 1, inputs(2, 1, 64, 80, [7, 79, 3, *_run(20, 40), 0])),
        _case("prefill of heads of 80", 5, 5, inputs(5, 5, 80, 70, _run(0, 70))),
        _case("prefill of heads of 96", 6, 2, inputs(6, 2, 96, 70, _run(0, 70))),
        _case("prefill of heads of 256", 4, 2, inputs(4, 2, 256, 70, _run(0, 66))),
        _case("prefill of odd heads", 3, 1, inputs(3, 1, 19, 70, _run(1, 66))),
        _case("prefill in a window", 4, 2, inputs(4, 2, 64, 200, _run(20, 150)), window=33),
        _case("prefill with a soft cap", 4, 2, inputs(4, 2, 128, 70, _run(0, 70)), soft_cap=2.0, scale=0.5),
        _case("prefill with a bias", 6, 2, inputs(6, 2, 64, 70, _run(0, 70), bias=(1, 6, 70, 70))),
        _case(
            "prefill with a masking bias",
            4,
            2,
            inputs(4, 2, 64, 66, _run(0, 66), _run(0, 66), bias=masked_bias((2, 1, 66, 66))),
        ),
        _case("empty bias", 4, 2, inputs(4, 2, 16, 40, [33], bias=(0,))),
        _case("encoder", 4, 4, _plain(4, 4, 32, 75, _mask(75, 0)), causal=0),
        _case(
            "padded encoder",
            4,
            4,
            _plain(4, 4, 32, 75, _mask(75, 0), _mask(13, 62), [*_mask(0, 40), *_mask(35, 0)]),
            causal=0,
        ),
        _case("encoder of hidden keys", 2, 2, _plain(2, 2, 64, 40, _mask(0, 40), _mask(40, 0)), causal=0),
        _case("encoder in a window", 4, 4, _plain(4, 4, 64, 75, _mask(75, 0), _mask(60, 15)), causal=0, window=9),
        _case(
            "encoder with a bias",
            6,
            6,
            _plain(6, 6, 64, 40, _mask(40, 0), _mask(21, 19), bias=(1, 6, 40, 40)),
            causal=0,
        ),
        _case("cross-attention", 8, 8, _plain(8, 8, 64, 50, _mask(93, 0), _mask(20, 73)), causal=0),
        _case("cross-attention of one query", 8, 2, _plain(8, 2, 64, 1, _mask(150, 0), _mask(20, 130)), causal=0),
        _case(
            "cross-attention with a bias a key", 4, 4, _plain(4, 4, 64, 5, _mask(30, 0), bias=(1, 1, 1, 30)), causal=0
        ),
        _case("no queries", 4, 2, inputs(4, 2, 32, 8, [], [])),
        _case(
            "no rows",
            4,
            2,
            {"q": (0, 1, 128), "present_k": (0, 2, 8, 32), "present_v": (0, 2, 8, 32), "position_ids": (0, 1)},
        ),
        _case("no keys", 4, 2, _plain(4, 2, 32, 3, [], []), causal=0),
        _case("only padding", 4, 2, inputs(4, 2, 32, 8, [-1, -1], [-1, -1])),
    ],
    refusals=[
        Refusal(
            _case("heads do not divide", 3, 2, _REFUSED), r"CachedAttention: attributes 'heads' 3 and 'kv_heads' 2"
        ),
        Refusal(_case("negative window", 4, 2, _REFUSED, window=-1), r"attribute 'window' -1: expected 0 \(none\)"),
        Refusal(_case("negative soft cap", 4, 2, _REFUSED, soft_cap=-1.0), r"attribute 'soft_cap' -1: expected 0"),
        Refusal(
            _case("rank of q", 4, 2, {**_REFUSED, "q": (1, 2, 4, 8)}),
            r"CachedAttention: input 'q': \w+ \[1, 2, 4, 8\], expected \[batch, queries, 4 heads \* head\]",
        ),
        Refusal(
            _case("a head too large", 1, 1, inputs(1, 1, 264, 4, [0])), r"a head of at most 256 elements, found 264"
        ),
        Refusal(
            _case("heads of the cache", 4, 2, {**_REFUSED, "present_k": (1, 4, 16, 8)}),
            r"input 'present_k': \w+ \[1, 4, 16, 8\], expected .* \[1, 2, keys, 8\] to match 'q' \[1, 2, 32\]",
        ),
        Refusal(
            _case("two capacities", 4, 2, {**_REFUSED, "present_v": (1, 2, 15, 8)}), r"input 'present_v': .*'present_k'"
        ),
        Refusal(
            _case("rank of the positions", 4, 2, {**_REFUSED, "position_ids": (2,)}),
            r"input 'position_ids': int64 \[2\], expected \[batch, queries\] \[1, 2\] where 'causal' is 1",
        ),
        Refusal(
            _case("positions of the queries", 4, 2, _REFUSED, causal=0),
            r"\[batch, keys\] \[1, 16\] where 'causal' is 0",
        ),
        Refusal(
            _case("past the cache", 4, 2, {**_REFUSED, "position_ids": positions([15, 16])}),
            r"input 'position_ids': .* expected positions from -1 \(padding\) to 15, found 16 in row 0",
        ),
        Refusal(_case("below padding", 4, 2, {**_REFUSED, "position_ids": positions([0, -2])}), r"found -2 in row 0"),
        Refusal(
            _case("keys of the bias", 4, 2, {**_REFUSED, "bias": (1, 4, 2, 15)}),
            r"input 'bias': \w+ \[1, 4, 2, 15\], expected .* of \[1, 4, 2, 16\]",
        ),
        Refusal(_case("heads of the bias", 4, 2, {**_REFUSED, "bias": (1, 2, 2, 16)}), r"input 'bias': .* 1 or heads"),
        Refusal(
            _case("window across", 4, 2, _plain(4, 2, 8, 3, _mask(5, 0)), causal=0, window=2),
            r"input 'present_k': .* as many keys as 'q' has queries, 3, for a window",
        ),
    ],
    benchmarks=[
        # The cache, once.
        Benchmark(
            _case(
                "decode 8 x 16384", 32, 8, {**_DECODE, "present_k": (8, 8, 16384, 128), "present_v": (8, 8, 16384, 128)}
            ),
            bytes=2 * 8 * 8 * 16384 * 128 * 2,
        ),
        Benchmark(
            _case(
                "prefill 4096",
                32,
                8,
                {
                    **inputs(32, 8, 128, 4096, _run(0, 4096)),
                    "present_k": (1, 8, 4096, 128),
                    "present_v": (1, 8, 4096, 128),
                },
            )
        ),
    ],
)
