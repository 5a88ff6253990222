"""SkipRmsNorm: ``y = rms_norm(x + skip) * weight``, and the residual sum ``x + skip`` as a second output.

RMS norm is ``x / sqrt(mean(x^2) + epsilon)`` (arXiv:1910.07467), over the last dimension. The sum is rounded to the
tensor's dtype before it is normalised, as a graph of Add and norm would. ``skip`` may be left off, ``sum`` too.
"""

from collections.abc import Mapping
from typing import Any

from rocline.custom_ops.schema import Argument, Benchmark, Case, Refusal, Shape, Spec, Tolerance


def _infer(shapes: Mapping[str, Shape], attributes: Mapping[str, Any]) -> dict[str, Shape]:
    return {"y": shapes["x"], "sum": shapes["x"]}


def _shapes(*lead: int, hidden: int, skip: bool = True) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {"x": (*lead, hidden), "weight": (hidden,)}
    return {**shapes, "skip": shapes["x"]} if skip else shapes


_NAME = r"SkipRmsNorm: input "

SPEC = Spec(
    name="SkipRmsNorm",
    inputs=[
        Argument("x", shape="[..., hidden]"),
        Argument("weight", shape="[hidden]"),
        Argument("skip", optional=True, shape="x's"),
    ],
    outputs=[Argument("y", shape="x's"), Argument("sum", optional=True, shape="x's")],
    attributes={"epsilon": 1e-5},
    infer=_infer,
    # Squares add up in another order on every kernel; 16-bit sums are rounded once and their norm once more.
    tolerances={
        "float32": Tolerance(relative=2e-6, absolute=1e-6),
        "float16": Tolerance(relative=1.5e-3, absolute=1e-6),
        "bfloat16": Tolerance(relative=1.2e-2, absolute=1e-6),
    },
    output_tolerances={"sum": {}},
    cases=[
        Case("decode", _shapes(1, 1, hidden=576)),
        Case("prefill", _shapes(2, 19, hidden=576), {"epsilon": 1e-6}),
        Case("no skip", _shapes(3, 111, hidden=64, skip=False)),
        Case("no skip, no sum", _shapes(5, hidden=2048, skip=False), outputs=1),
        Case("no sum", _shapes(7, hidden=896), outputs=1),
        Case("odd", _shapes(3, 5, hidden=37)),
        Case("odd, no sum", _shapes(4, hidden=1031), outputs=1),
        Case("one", _shapes(1, hidden=1)),
        Case("no rows", _shapes(0, hidden=64)),
        Case("no columns", _shapes(3, hidden=0)),
        Case("one dimension", _shapes(hidden=128)),
        Case("longest short row", _shapes(9, hidden=512)),
        Case("held in registers", _shapes(3, hidden=4096)),
        Case("longer than the registers hold", _shapes(2, hidden=10240)),
        Case("longer, no sum", _shapes(2, hidden=10240), outputs=1),
        Case("longer and odd", _shapes(2, hidden=10243)),
        Case("large epsilon", _shapes(4, hidden=96), {"epsilon": 0.5}),
        Case("y in place of x", _shapes(6, hidden=320), alias={"y": "x"}),
        Case("sum in place of skip", _shapes(6, hidden=4099), alias={"sum": "skip"}),
        Case("sum in place of x, long", _shapes(2, hidden=10240), alias={"sum": "x"}),
    ],
    refusals=[
        Refusal(Case("other weight", {"x": (2, 8), "weight": (7,)}), _NAME + r"'weight': \w+ \[7\], expected \[8\]"),
        Refusal(
            Case("weight of rank 2", {"x": (2, 8), "weight": (1, 8)}), _NAME + r"'weight': \w+ \[1, 8\], expected \[8\]"
        ),
        Refusal(
            Case("other skip", {"x": (2, 8), "weight": (8,), "skip": (8,)}),
            _NAME + r"'skip': \w+ \[8\], expected .* \[2, 8\]",
        ),
        Refusal(Case("scalar", {"x": (), "weight": ()}), _NAME + r"'x': \w+ \[\], expected at least one dimension"),
    ],
    benchmarks=[
        Benchmark(Case("prefill", _shapes(16384, hidden=4096))),
        Benchmark(Case("prefill of a small model", _shapes(65536, hidden=576))),
        Benchmark(Case("no skip", _shapes(16384, hidden=4096, skip=False), outputs=1)),
    ],
)
