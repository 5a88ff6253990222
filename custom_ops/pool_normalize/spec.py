"""PoolNormalize: one vector for each row of token vectors, and its L2 norm made 1.

``PoolNormalize(x, attention_mask; mode = "mean", normalize = 1) -> y, workspace``

- ``mode``: "mean" of the tokens whose mask is not 0, "cls" for the first token, whatever its mask, or "last" for the
  last token whose mask is not 0, so that padding may stand on either side.
- ``normalize``: 1 divides by the norm, or by 1e-12 if that is more (torch's ``F.normalize``).

A row with no token gives zeros, save in "cls" (sentence-transformers' ``Pooling``). Masked tokens are not read: NaN in
them does no harm. Sums and ``y`` are float32 for every dtype of ``x``.

``workspace`` is memory that ONNX Runtime plans: nothing in it is of use afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rocline.custom_ops.schema import FLOATS, Argument, Benchmark, Case, Refusal, Shape, Spec, Tolerance

if TYPE_CHECKING:
    import numpy as np

    from rocline.custom_ops.schema import Array, Source

MODES = ("mean", "cls", "last")


def _infer(shapes: Mapping[str, Shape], attributes: Mapping[str, Any]) -> dict[str, Shape]:
    batch, tokens, hidden = shapes["x"]
    splits = min(64, -(-tokens // 64)) if attributes["mode"] == "mean" else 0
    return {"y": (batch, hidden), "workspace": (batch, splits, hidden)}


def _mask(batch: int, tokens: int, kind: str) -> Source:
    """Rows padded on the ``right`` or ``left``, with ``holes``, every other one ``empty``, or all of them ``full``."""

    def make(rng: np.random.Generator) -> Array:
        import numpy as np

        lengths = rng.integers(1, tokens + 1, (batch, 1)) if tokens else np.zeros((batch, 1), np.int64)
        places = np.arange(tokens)[None]
        if kind == "left":
            return (places >= tokens - lengths).astype(np.int64)
        if kind == "full":
            return np.ones((batch, tokens), np.int64)
        if kind == "holes":
            return rng.integers(0, 2, (batch, tokens))
        mask = (places < lengths).astype(np.int64)
        if kind == "empty":
            mask[::2] = 0
        return mask

    return make


def _cases(name: str, batch: int, tokens: int, hidden: int, kind: str = "right") -> list[Case]:
    """The shape in every mode, with and without the norm."""
    inputs: dict[str, Source] = {"x": (batch, tokens, hidden), "attention_mask": _mask(batch, tokens, kind)}
    return [
        Case(f"{name} {mode}{' normalised' * normalize}", inputs, {"mode": mode, "normalize": normalize})
        for mode, normalize in (("mean", 0), ("mean", 1), ("cls", 1), ("last", 0), ("last", 1))
    ]


def _padding_is_nan(rng: np.random.Generator) -> Array:
    import numpy as np

    x = rng.standard_normal((2, 6, 24), dtype=np.float32)
    x[:, 3:] = np.nan
    return x


def _half(rng: np.random.Generator) -> Array:
    import numpy as np

    return np.array([[1, 1, 1, 0, 0, 0]] * 2)


def _refused(name: str, message: str, **replaced: Any) -> Refusal:
    inputs = {"x": (2, 3, 4), "attention_mask": (2, 3)}
    attributes = {key: value for key, value in replaced.items() if key not in inputs}
    inputs |= {key: value for key, value in replaced.items() if key in inputs}
    return Refusal(Case(name, inputs, attributes), rf"PoolNormalize: {message}")


SPEC = Spec(
    name="PoolNormalize",
    inputs=[
        Argument("x", shape="[batch, tokens, hidden]"),
        Argument("attention_mask", "int64", shape="[batch, tokens]"),
    ],
    outputs=[
        Argument("y", "float32", shape="[batch, hidden]"),
        Argument("workspace", "float32", shape="[batch, a number that depends on tokens, hidden]"),
    ],
    attributes={"mode": "mean", "normalize": 1},
    infer=_infer,
    tolerances=dict.fromkeys(FLOATS, Tolerance(relative=2e-6, absolute=5e-7)),
    output_tolerances={"workspace": None},
    cases=[
        Case("defaults", {"x": (3, 7, 32), "attention_mask": _mask(3, 7, "right")}),
        *_cases("sentences", 5, 19, 384),
        *_cases("left padding", 3, 40, 96, "left"),
        *_cases("holes", 3, 111, 64, "holes"),
        *_cases("empty rows", 4, 9, 40, "empty"),
        *_cases("odd", 3, 37, 67),
        *_cases("one", 1, 1, 1),
        *_cases("one column", 4, 65, 1),
        *_cases("tall", 2, 1500, 24),
        *_cases("many splits", 1, 4200, 5, "holes"),
        *_cases("wide", 2, 5, 2056),
        *_cases("no rows", 0, 5, 8),
        *_cases("no tokens", 2, 0, 8),
        *_cases("no columns", 2, 5, 0),
        Case("padding is NaN", {"x": _padding_is_nan, "attention_mask": _half}),
        Case("several threads", {"x": (40, 128, 384), "attention_mask": _mask(40, 128, "right")}),
    ],
    refusals=[
        _refused("rank", r"input 'x': float32 \[6, 4\], expected \[batch, tokens, hidden\]", x=(6, 4)),
        _refused("mask", r"input 'attention_mask': int64 \[2, 4\], expected .* \[2, 3, 4\]", attention_mask=(2, 4)),
        _refused("mode", "attribute 'mode': 'max', expected mean, cls or last", mode="max"),
    ],
    benchmarks=[
        Benchmark(Case("sentences", {"x": (512, 256, 384), "attention_mask": _mask(512, 256, "full")})),
        Benchmark(Case("documents", {"x": (16, 8192, 1024), "attention_mask": _mask(16, 8192, "full")})),
        Benchmark(
            Case("last", {"x": (512, 256, 4096), "attention_mask": _mask(512, 256, "full")}, {"mode": "last"}),
            bytes=512 * 4096 * 6,
        ),
    ],
)
