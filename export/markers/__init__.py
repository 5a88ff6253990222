"""Decoder-only models traced through Optimum with marker operators in place of what their modules mean.

A marker (`functions`) stands for one thing a transformer does: a norm, a rotary embedding, an append to the KV cache,
an attention. Markers enter at transformers' public seams (`seams`), each only where a numeric probe (`probes`) finds
that it means what the module computes. A rehearsal holds the marked model against the original one before it is traced,
and a guard (`guard`) counts in the traced graph. Whatever does not fit is `Refused` with its reason; the passes of
`rocline.export.passes` turn the markers into operators.
"""

from rocline.export.markers.refusal import Refused
from rocline.export.markers.tracing import MarkedGraph, trace

__all__ = ["MarkedGraph", "Refused", "trace"]
