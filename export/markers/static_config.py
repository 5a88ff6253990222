"""Optimum's export config of an architecture, changed to a cache of fixed size: what the graph is given and gives."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from rocline.export.markers.seams import Seams

# The sizes to trace with; none equals another, so that a size baked into the graph shows.
_BATCH, _TOKENS, _CAPACITY = 2, 5, 11
_FIRST = 3
POSITIONS = _FIRST + _TOKENS
"""How many positions a model must have to be traced."""
_ROWS = {0: "batch_size", 1: "sequence_length"}
_BUFFER = {0: "batch_size", 2: "capacity"}


def make(base: Any, seams: Seams, layers: Sequence[tuple[int, int]], rehearse: Callable[[Any], None]) -> Any:
    """Returns an Optimum export config with the inputs and outputs of a static cache.

    Inputs are ``input_ids`` and ``position_ids`` int64 [batch_size, sequence_length] and ``past_key_values.N.key`` and
    ``.value`` float32 [batch_size, kv_heads, capacity, head]; outputs are ``logits`` [batch_size, 1, vocabulary] of
    each row's last position and ``present.N.key`` and ``.value``, shaped as the past.

    Args:
        base: Optimum's config of the model, made for its task.
        seams: installed while Optimum's own patches are.
        layers: (kv_heads, head) of each layer's cache.
        rehearse: called with the patched model before it is traced.
    """

    class Patcher(base._MODEL_PATCHER):  # type: ignore[misc]
        def __init__(self, config: Any, model: Any, model_kwargs: Any = None):
            # Optimum asks for the logits of all tokens; the markers pick the one.
            super().__init__(config, model, model_kwargs={})
            inner: Callable[..., Any] = self.patched_forward

            def forward(input_ids: Any, position_ids: Any, past_key_values: Any) -> Any:
                with seams.running(position_ids) as clamped:
                    return inner(input_ids=input_ids, position_ids=clamped, past_key_values=past_key_values)

            self.patched_forward: Callable[..., Any] = forward
            self._stack = contextlib.ExitStack()

        def __enter__(self) -> None:
            with contextlib.ExitStack() as stack:
                stack.push(super().__exit__)
                super().__enter__()
                stack.enter_context(seams.installed())
                rehearse(self._model)
                self._stack = stack.pop_all()

        def __exit__(self, *raised: Any) -> None:
            self._stack.__exit__(*raised)

    class Config(type(base)):  # type: ignore[misc]
        _MODEL_PATCHER = Patcher

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            return {"input_ids": _ROWS, "position_ids": _ROWS, **dict.fromkeys(_names("past_key_values"), _BUFFER)}

        @property
        def outputs(self) -> dict[str, dict[int, str]]:
            return {"logits": {0: "batch_size"}, **dict.fromkeys(_names("present"), _BUFFER)}

        def generate_dummy_inputs(self, *_: Any, **__: Any) -> dict[str, Any]:
            return {
                "input_ids": torch.arange(_BATCH * _TOKENS).reshape(_BATCH, _TOKENS),
                "position_ids": torch.arange(_FIRST, _FIRST + _TOKENS).repeat(_BATCH, 1),
                "past_key_values": empty_cache(layers, batch=_BATCH, capacity=_CAPACITY),
            }

    def _names(prefix: str) -> Iterator[str]:
        for layer in range(len(layers)):
            yield f"{prefix}.{layer}.key"
            yield f"{prefix}.{layer}.value"

    return Config(
        base._config,
        task=base.task,
        int_dtype=base.int_dtype,
        float_dtype=base.float_dtype,
        use_past=True,
        use_past_in_inputs=True,
    )


def empty_cache(
    layers: Sequence[tuple[int, int]], *, batch: int, capacity: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns the cache before the first token: (key, value) a layer, each [batch, kv_heads, capacity, head]."""
    return [
        (torch.zeros(batch, heads, capacity, size), torch.zeros(batch, heads, capacity, size)) for heads, size in layers
    ]
