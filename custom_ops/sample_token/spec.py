"""SampleToken: a token id for each row of logits, greedy or drawn.

``SampleToken(logits, temperature, top_k, top_p, min_p, repetition_penalty, seed[, previous]) -> tokens, workspace``

What acts, in the order of transformers' ``generate``:

1. ``repetition_penalty`` on the tokens in ``previous``, each once: logits above 0 are divided by it, others multiplied.
   Ids outside the vocabulary (-1) are padding. 1 changes nothing.
2. ``temperature``. 0 is greedy: the highest logit, ties to the lower id; nothing below applies.
3. ``top_k``: the k most probable tokens. 0 or less, or the vocabulary and more: all.
4. ``top_p``: of these the fewest most probable ones whose sum is at least top_p of theirs; at least one. 1: all.
5. ``min_p``: of these the ones at least min_p times as probable as the best. 0: all.
6. One of these is drawn, by the first 64 bits of Philox4x32-10 with ``seed[row] = (seed, offset)`` as key and counter:
   a request gets its tokens whichever row it stands in, if its offset moves on with each of them.

Tokens of equal probability are taken by id, the lower one first, in 3 and 4 as well: ``top_k`` keeps k tokens, never
more (transformers keeps every tie). Tokens that differ by less than 2^-15 of their distance to the best logit count as
equal where that distance is below 2^-16 or above 2^15.

Probabilities are whole numbers, exp((logit - best) / temperature) in units of 2^-39, and so are their sums: the tokens
are the same on every device, given the same logits. A token below 2^-39 of the best one is never drawn.

A row with a parameter out of range, a NaN or nothing but -inf has no token. The CPU answers with an error that names
the row; a GPU cannot, and gives -1 (temperature), -2 (top_p), -3 (min_p), -4 (repetition_penalty), -5 (NaN) or -6
(nothing but -inf). +inf is above every number.

``workspace`` is memory that ONNX Runtime plans: nothing in it is of use afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rocline.custom_ops.schema import Argument, Benchmark, Case, Refusal, Shape, Spec

if TYPE_CHECKING:
    import numpy as np

    from rocline.custom_ops.schema import Array, Source

CHUNK = 4096
"""Tokens of a row that one block handles."""


def _infer(shapes: Mapping[str, Shape], attributes: Mapping[str, Any]) -> dict[str, Shape]:
    batch, vocab = shapes["logits"]
    chunks = -(-vocab // CHUNK)
    even_chunks = chunks + chunks % 2
    words = chunks * CHUNK // 2 + 3 * even_chunks + (2048 + 2 * (512 + 256)) * 3 // 2 + 26
    return {"tokens": (batch,), "workspace": (batch, words)}


def _values(values: Sequence[float]) -> Source:
    def make(rng: np.random.Generator) -> Array:
        import numpy as np

        return np.array(values)

    return make


def _logits(batch: int, vocab: int, spread: float, step: float, masked: float) -> Source:
    def make(rng: np.random.Generator) -> Array:
        import numpy as np

        logits = rng.standard_normal((batch, vocab), dtype=np.float32) * np.float32(spread)
        if step:
            logits = np.round(logits / np.float32(step)) * np.float32(step)
        logits[:, 1:][rng.random((batch, vocab - 1)) < masked] = -np.inf
        return logits

    return make


@dataclass(frozen=True)
class _By:
    """Parameters: one value each, or one a row."""

    temperature: Sequence[float] = (1.0,)
    top_k: Sequence[int] = (0,)
    top_p: Sequence[float] = (1.0,)
    min_p: Sequence[float] = (0.0,)
    penalty: Sequence[float] = (1.0,)


def _case(
    name: str,
    batch: int,
    vocab: int,
    by: _By,
    *,
    seen: int | None = None,
    spread: float = 3.0,
    step: float = 0.0,
    masked: float = 0.0,
    dtypes: tuple[str, ...] | None = None,
    logits: Source | None = None,
) -> Case:
    """A case with random logits and seeds.

    Args:
        name, batch, vocab, dtypes: as they say.
        by: the other parameters.
        seen: columns of ``previous``, with repeated ids and padding; None leaves the input off.
        spread, step, masked: deviation of the logits, what they are rounded to, share of them that is -inf.
        logits: instead of random ones.
    """
    inputs: dict[str, Source] = {
        "logits": logits or _logits(batch, vocab, spread, step, masked),
        "temperature": _values(by.temperature),
        "top_k": _values(by.top_k),
        "top_p": _values(by.top_p),
        "min_p": _values(by.min_p),
        "repetition_penalty": _values(by.penalty),
        "seed": lambda rng: rng.integers(-(2**63), 2**63 - 1, (batch, 2)),
    }
    if seen is not None:
        inputs["previous"] = lambda rng: rng.integers(-1, vocab + 1, (batch, seen))
    return Case(name, inputs, dtypes=dtypes)


_GREEDY = _By(temperature=(0.0,))
_MIXED = _By(
    temperature=(0.0, 0.7, 1.0, 1.5, 1.0, 0.3, 100.0),
    top_k=(0, 50, 1, 7, 0, -1, 1000),
    top_p=(1.0, 0.9, 0.5, 1.0, 0.95, 0.01, 0.999),
    min_p=(0.0, 0.0, 0.1, 0.05, 0.0, 0.0, 0.5),
    penalty=(1.0, 1.3, 1.1, 1.0, 0.8, 1.2, 2.0),
)


def _special(value: float, everywhere: bool) -> Source:
    """Logits [3, 5] whose second row holds ``value``, once or in every place."""

    def make(rng: np.random.Generator) -> Array:
        import numpy as np

        logits = rng.standard_normal((3, 5), dtype=np.float32)
        logits[1, 0 if everywhere else 3 :] = value
        return logits

    return make


def _refused(name: str, message: str, **replaced: Source) -> Refusal:
    return Refusal(Case(name, {**_case(name, 3, 5, _By()).inputs, **replaced}), rf"SampleToken: {message}")


SPEC = Spec(
    name="SampleToken",
    inputs=[
        Argument("logits", shape="[batch, vocab], vocab at most 4194304"),
        Argument("temperature", "float32", shape="[batch] or [1]"),
        Argument("top_k", "int32", shape="[batch] or [1]"),
        Argument("top_p", "float32", shape="[batch] or [1]"),
        Argument("min_p", "float32", shape="[batch] or [1]"),
        Argument("repetition_penalty", "float32", shape="[batch] or [1]"),
        Argument("seed", "int64", shape="[batch, 2]: seed, offset"),
        Argument("previous", "int64", optional=True, shape="[batch, any]: ids already in the text, -1 for padding"),
    ],
    outputs=[
        Argument("tokens", "int64", shape="[batch]"),
        Argument("workspace", "int64", shape="[batch, a size that depends on vocab]"),
    ],
    attributes={},
    infer=_infer,
    output_tolerances={"workspace": None},
    cases=[
        _case("greedy", 5, 1031, _GREEDY),
        _case("greedy ties", 5, 4097, _GREEDY, step=2.0),
        _case("greedy penalised", 3, 4099, _By(temperature=(0.0,), penalty=(1.5,)), seen=64),
        _case("plain", 7, 513, _By()),
        _case("no rows", 0, 19, _By(), logits=(0, 19)),
        _case("nothing seen", 2, 19, _By(), seen=0),
        _case("one token", 3, 1, _By(temperature=(0.0, 1.0, 2.0), top_k=(1,), top_p=(0.5,))),
        _case("two tokens", 9, 2, _By(top_p=(0.5,))),
        _case("every parameter", 7, 1027, _MIXED, seen=40),
        _case("whole chunk", 7, 4096, _MIXED, seen=40),
        _case("two chunks and one", 7, 8193, _MIXED, seen=40),
        _case("ties", 7, 5000, _MIXED, step=1.0, seen=9),
        _case("all equal", 7, 5000, _MIXED, spread=0.0),
        _case("masked", 7, 5000, _MIXED, masked=0.9, seen=7),
        _case("nearly equal", 7, 3001, _MIXED, spread=1e-7, dtypes=("float32",)),
        _case("far apart", 7, 3001, _MIXED, spread=5e3),
        _case("infinite", 3, 5, _By(top_p=(0.9,)), logits=_special(float("inf"), everywhere=False)),
        _case("least numbers", 3, 5, _By(), logits=_special(-3e38, everywhere=False), dtypes=("float32", "bfloat16")),
        _case("top_k of the vocabulary", 4, 333, _By(top_k=(333, 334, 332, 2**31 - 1))),
        _case("top_p of nothing", 4, 333, _By(top_p=(0.0, 1e-45, 1e-9, 0.001))),
        _case("min_p", 4, 333, _By(min_p=(1.0, 0.99, 1e-9, 0.2))),
        _case("extreme temperatures", 6, 777, _By(temperature=(1e-45, 1e-30, 1e-4, 1e4, 3e38, 1e-10), top_p=(0.9,))),
        _case("large vocabulary", 2, 151936, _By(top_k=(50, 0), top_p=(0.9, 0.95), penalty=(1.1,)), seen=300),
    ],
    refusals=[
        _refused("rank", r"input 'logits': float32 \[10\], expected \[batch, vocab\]", logits=(10,)),
        _refused("no tokens", r"input 'logits': float32 \[3, 0\], expected .* 1 to", logits=(3, 0)),
        _refused("temperatures", r"input 'temperature': float32 \[2\], expected \[1\], or \[3\]", temperature=(2,)),
        _refused("top_k", r"input 'top_k': int32 \[3, 1\], expected \[1\], or \[3\]", top_k=(3, 1)),
        _refused("seed", r"input 'seed': int64 \[1, 2\], expected \[3, 2\]", seed=(1, 2)),
        _refused("previous", r"input 'previous': int64 \[4, 2\], expected \[3, tokens\]", previous=(4, 2)),
        _refused("negative temperature", "input 'temperature': -1 for row 1,", temperature=_values((1, -1, 1))),
        _refused("infinite temperature", "input 'temperature': inf for row 0,", temperature=_values((float("inf"),))),
        _refused("top_p above 1", "input 'top_p': 1.5 for row 0, expected 0 to 1", top_p=_values((1.5,))),
        _refused(
            "min_p is NaN", "input 'min_p': -?nan for row 2, expected 0 to 1", min_p=_values((0, 1, float("nan")))
        ),
        _refused("no penalty", "input 'repetition_penalty': 0 for row 0,", repetition_penalty=_values((0.0,))),
        _refused("NaN", r"input 'logits': float32 \[3, 5\], row 1 holds NaN", logits=_special(float("nan"), False)),
        _refused(
            "all -inf", r"input 'logits': float32 \[3, 5\], row 1 is all -inf", logits=_special(float("-inf"), True)
        ),
    ],
    benchmarks=[
        # Short kernels: the time counts, not the bandwidth. The logits of all rows once is what any way must read.
        Benchmark(_case("greedy", 8, 131072, _GREEDY), bytes=8 * 131072 * 2),
        Benchmark(
            _case(
                "top_k and top_p",
                8,
                131072,
                _By(temperature=(0.8,), top_k=(50,), top_p=(0.9,), penalty=(1.1,)),
                seen=512,
            ),
            bytes=8 * 131072 * 2,
        ),
        Benchmark(_case("top_p of all", 8, 131072, _By(top_p=(0.95,))), "float32", bytes=8 * 131072 * 4),
    ],
)
