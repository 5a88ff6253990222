"""The marker operators in NumPy, so that a marked graph runs before it is lowered."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import static_decoding
from onnx.defs import OpSchema
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from rocline.custom_ops.rewriting import MARKERS


class _Marker(OpRun):
    op_domain = MARKERS
    # Without one of its own, Attention would get the defaults of ONNX's operator of that name.
    op_schema = OpSchema("Marker", MARKERS, 1)


class RmsNorm(_Marker):
    def _run(self, x, weight, epsilon):
        return (x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(epsilon)) * weight,)


class RotaryTable(_Marker):
    def _run(self, position_ids, cos, sin):
        return cos[position_ids], sin[position_ids]


class Rotary(_Marker):
    def _run(self, x, cos, sin, interleaved):
        width = cos.shape[-1]
        first, second = (
            (slice(0, width, 2), slice(1, width, 2))
            if interleaved
            else (
                slice(0, width // 2),
                slice(width // 2, width),
            )
        )
        c, s = (table[:, None][..., first] for table in (cos, sin))
        turned = x.copy()
        turned[..., first] = x[..., first] * c - x[..., second] * s
        turned[..., second] = x[..., second] * c + x[..., first] * s
        return (turned,)


class CacheAppend(_Marker):
    def _run(self, past, new, position_ids):
        present = past.copy()
        for row, token in np.argwhere(position_ids >= 0):
            present[row, :, position_ids[row, token]] = new[row, :, token]
        return (present,)


class Attention(_Marker):
    def _run(self, q, k, v, position_ids, scale, soft_cap, window, heads, kv_heads, head_dim):
        output = np.zeros((len(q), q.shape[2], heads, head_dim), np.float32)
        for row, token in np.argwhere(position_ids >= 0):
            position = position_ids[row, token]
            seen = slice(max(0, position - window + 1) if window >= 0 else 0, position + 1)
            for head in range(heads):
                source = head // (heads // kv_heads)
                scores = k[row, source, seen] @ q[row, head, token] * np.float32(scale)
                if soft_cap:
                    scores = np.tanh(scores / soft_cap) * soft_cap
                weights = np.exp(scores - scores.max())
                output[row, token, head] = (weights / weights.sum()) @ v[row, source, seen]
        return (output.astype(np.float32),)


class Activation(_Marker):
    def _run(self, x, kind):
        import torch

        x = torch.from_numpy(x)
        if kind == "silu":
            return (torch.nn.functional.silu(x).numpy(),)
        approximate = {"gelu": "none", "gelu_tanh": "tanh"}[kind]
        return (torch.nn.functional.gelu(x, approximate=approximate).numpy(),)


class LastToken(_Marker):
    def _run(self, hidden, position_ids):
        return (hidden[np.arange(len(hidden)), position_ids.argmax(1)][:, None],)


def evaluator(path: Path) -> ReferenceEvaluator:
    """Returns what runs a marked ONNX file: ``.run(None, feeds)``, ``.output_names``."""
    return ReferenceEvaluator(
        str(path), new_ops=[RmsNorm, RotaryTable, Rotary, CacheAppend, Attention, Activation, LastToken]
    )


def deviation(model: Any, path: Path) -> dict[str, float]:
    """Returns how far a marked graph's logits are from PyTorch's, as `static_decoding.deviation` does."""
    runner = evaluator(path)
    caches = {
        value.name: (value.type.tensor_type.shape.dim[1].dim_value, value.type.tensor_type.shape.dim[3].dim_value)
        for value in onnx.load(path).graph.input
        if value.name.startswith("past_key_values")
    }

    def run(feeds: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(runner.output_names, runner.run(None, feeds), strict=True))

    return static_decoding.deviation(model, run, caches)
