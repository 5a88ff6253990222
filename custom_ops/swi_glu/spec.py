"""SwiGlu: ``y = activation(gate) * up``, the gate of a transformer's MLP (arXiv:2002.05202).

``gate`` and ``up`` are two tensors, or one of twice the width that holds both side by side, gate first, as a packed
projection makes it. ``activation`` is ``silu`` (``x sigmoid(x)``), ``gelu`` (by erf) or ``gelu_tanh`` (PyTorch's
``approximate="tanh"``).
"""

from collections.abc import Mapping
from typing import Any

from rocline.custom_ops.schema import Argument, Benchmark, Case, Refusal, Shape, Spec, Tolerance


def _infer(shapes: Mapping[str, Shape], attributes: Mapping[str, Any]) -> dict[str, Shape]:
    gate = shapes["gate"]
    return {"y": gate if "up" in shapes else (*gate[:-1], gate[-1] // 2)}


def _two(*shape: int) -> dict[str, Shape]:
    return {"gate": shape, "up": shape}


SPEC = Spec(
    name="SwiGlu",
    inputs=[
        Argument("gate", shape="[..., columns], or [..., 2 columns] with gate and up side by side"),
        Argument("up", optional=True, shape="gate's"),
    ],
    outputs=[Argument("y", shape="[..., columns]")],
    attributes={"activation": "silu"},
    infer=_infer,
    # The hardware's exp is good to 1e-7; far on the left a gate is the small difference of numbers near 1. In 16 bits a
    # result near a tie may be rounded the other way, which is a whole unit in the last place.
    tolerances={
        "float32": Tolerance(relative=4e-6, absolute=2e-6),
        "float16": Tolerance(relative=1e-3, absolute=2e-6),
        "bfloat16": Tolerance(relative=8e-3, absolute=2e-6),
    },
    cases=[
        Case("decode", _two(1, 1, 1536)),
        Case("several rows", _two(2, 19, 1536)),
        Case("gelu", _two(3, 111, 64), {"activation": "gelu"}),
        Case("gelu tanh", _two(3, 111, 64), {"activation": "gelu_tanh"}),
        Case("odd", _two(3, 37)),
        Case("scalar", _two()),
        Case("empty", _two(0, 16)),
        Case("several blocks", _two(111, 1031)),
        Case("packed", {"gate": (2, 5, 3072)}),
        Case("packed gelu", {"gate": (7, 128)}, {"activation": "gelu"}),
        Case("packed gelu tanh", {"gate": (7, 128)}, {"activation": "gelu_tanh"}),
        Case("packed odd", {"gate": (19, 74)}),
        Case("packed narrow", {"gate": (1111, 2)}),
        Case("packed, rows of several blocks", {"gate": (3, 20480)}),
        Case("packed, no rows", {"gate": (0, 64)}),
        Case("packed, no columns", {"gate": (3, 0)}),
        Case("far from zero", {"gate": lambda rng: rng.normal(0, 30, (5, 64)), "up": (5, 64)}),
        Case(
            "far from zero, gelu",
            {"gate": lambda rng: rng.normal(0, 30, (5, 64)), "up": (5, 64)},
            {"activation": "gelu"},
        ),
        Case("y in place of gate", _two(4, 96), alias={"y": "gate"}),
    ],
    refusals=[
        Refusal(Case("other up", {"gate": (2, 8), "up": (8,)}), r"SwiGlu: input 'up': \w+ \[8\], expected .* \[2, 8\]"),
        Refusal(Case("packed, uneven", {"gate": (2, 7)}), r"SwiGlu: input 'gate': \w+ \[2, 7\], expected an even last"),
        Refusal(Case("other gate", _two(4), {"activation": "relu"}), r"\"relu\", expected silu, gelu or gelu_tanh"),
    ],
    benchmarks=[
        Benchmark(Case("two tensors", _two(16384, 4096))),
        Benchmark(Case("packed", {"gate": (16384, 8192)})),
        Benchmark(Case("packed gelu", {"gate": (16384, 8192)}, {"activation": "gelu"})),
    ],
)
