"""AddScale: ``y = (a + b) * scale``, with ``b`` broadcast over the leading dimensions of ``a``."""

from collections.abc import Mapping
from typing import Any

from rocline.custom_ops.schema import Argument, Benchmark, Case, Refusal, Shape, Spec


def _infer(shapes: Mapping[str, Shape], attributes: Mapping[str, Any]) -> dict[str, Shape]:
    return {"y": shapes["a"]}


SPEC = Spec(
    name="AddScale",
    inputs=[Argument("a", shape="any"), Argument("b", shape="the last dimensions of a, after any number of 1")],
    outputs=[Argument("y", shape="a's")],
    attributes={"scale": 1.0},
    infer=_infer,
    # Both sums and products are single roundings: every kernel must give the reference's very bits.
    cases=[
        Case("same shape", {"a": (4, 64), "b": (4, 64)}, {"scale": 0.5}),
        Case("default scale", {"a": (2, 3, 8), "b": (2, 3, 8)}),
        Case("one element", {"a": (1,), "b": (1,)}, {"scale": -3.25}),
        Case("scalar", {"a": (), "b": ()}, {"scale": 2.0}),
        Case("scalar b", {"a": (5, 7), "b": ()}, {"scale": 0.1}),
        Case("empty", {"a": (0, 16), "b": (16,)}, {"scale": 0.5}),
        Case("empty rows", {"a": (3, 0), "b": (0,)}, {"scale": 0.5}),
        Case("bias", {"a": (3, 19, 64), "b": (64,)}, {"scale": 0.3}),
        Case("odd bias", {"a": (3, 19, 37), "b": (37,)}, {"scale": 0.3}),
        Case("bias of one", {"a": (111, 1), "b": (1,)}, {"scale": 0.7}),
        Case("two trailing dimensions", {"a": (5, 6, 11), "b": (6, 11)}, {"scale": 1.5}),
        Case("leading ones", {"a": (4, 5, 24), "b": (1, 1, 24)}, {"scale": 1.5}),
        Case("several blocks", {"a": (111, 1031), "b": (111, 1031)}, {"scale": 0.25}),
        Case("several threads", {"a": (301, 768), "b": (768,)}, {"scale": 0.25}),
    ],
    refusals=[
        Refusal(
            Case("other rows", {"a": (2, 5), "b": (3, 5)}), r"AddScale: input 'b': \w+ \[3, 5\], expected .* \[2, 5\]"
        ),
        Refusal(
            Case("other columns", {"a": (2, 5), "b": (4,)}), r"AddScale: input 'b': \w+ \[4\], expected .* \[2, 5\]"
        ),
        Refusal(Case("higher rank", {"a": (5,), "b": (1, 5)}), r"AddScale: input 'b': \w+ \[1, 5\], expected .* \[5\]"),
    ],
    benchmarks=[
        Benchmark(Case("residual", {"a": (16384, 4096), "b": (16384, 4096)}, {"scale": 0.5})),
        Benchmark(Case("bias", {"a": (16384, 4096), "b": (4096,)}, {"scale": 0.5})),
    ],
)
