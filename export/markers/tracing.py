"""From a PyTorch decoder to an ONNX graph with markers and a cache of fixed size."""

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from rocline.errors import ExportError
from rocline.export import optimum_export
from rocline.export.markers import guard, static_config
from rocline.export.markers.refusal import Refused
from rocline.export.markers.seams import Seams, seam
from rocline.export.quiet import one_line, quiet

_TASK = "text-generation"
_FIRST_OPSET = 13  # Squeeze and Unsqueeze take their axes as an input
# The rehearsal's two rows, of 5 and 4 tokens: all but the last in one padded prefill, then one decode step.
_LENGTHS = (5, 4)
# Of the largest logit: far above float32's rounding in another order, far below any other formula.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class MarkedGraph:
    """A traced decoder.

    Attributes:
        path: its ONNX file, with operators of the domain `rocline.custom_ops.rewriting.MARKERS`; inputs and outputs as
            in `static_config.make`.
        marked: how many operators of each kind it holds.
        unmarked: what stayed as PyTorch has it, and why, once for each module.
        capacity: the most positions a row can have.
    """

    path: Path
    marked: Mapping[str, int]
    unmarked: tuple[str, ...]
    capacity: int


def trace(model: Any, folder: Path, *, opset: int) -> MarkedGraph:
    """Traces a decoder-only model with markers into ``folder / "model.onnx"``.

    The model is left as it was, also after an error.

    Args:
        model: a transformers model with a language-modelling head, in float32, on the CPU, in evaluation mode.
        folder: where the file goes.
        opset: of the default domain.

    Raises:
        Refused: the model cannot be traced with markers, or not with the same numbers.
        ExportError: Optimum does not know the architecture.
    """
    if model.config.is_encoder_decoder:
        raise Refused(f"{type(model).__name__} is an encoder-decoder, expected a decoder alone")
    if opset < _FIRST_OPSET:
        raise Refused(f"opset {opset} is too old for its operators, expected {_FIRST_OPSET} or later")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int):
        raise Refused(f"{type(model).__name__}: its config has no max_position_embeddings, so no capacity is known")
    if positions < static_config.POSITIONS:
        raise Refused(f"{type(model).__name__}: has {positions} positions, tracing takes {static_config.POSITIONS}")
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise Refused(f"{type(model).__name__}: takes no position_ids")
    from optimum.exporters.onnx import export_models

    path = folder / "model.onnx"
    seams = Seams(model, positions)
    try:
        with quiet(), optimum_export.restored(model):
            reference, layers = _reference(model)
            base = optimum_export.optimum_config(model, _TASK)
            config = static_config.make(base, seams, layers, lambda patched: _rehearse(patched, reference, layers))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                export_models(
                    {"model": (model, config)},
                    folder,
                    opset=opset,
                    output_names=[path.name],
                    disable_dynamic_axes_fix=True,
                )
        _check_decisions(caught)
        marked = guard.check(path, len(layers))
    except BaseException as error:
        path.unlink(missing_ok=True)
        path.with_name(path.name + "_data").unlink(missing_ok=True)
        if isinstance(error, ExportError | OSError) or not isinstance(error, Exception):
            raise
        # Whatever a seam was used for that the markers do not know surfaces as an error of the marked model.
        raise Refused(f"{type(model).__name__} does not run with markers: {one_line(error)}") from error
    return MarkedGraph(path, MappingProxyType(dict(marked)), tuple(seams.unmarked), positions)


def _check_decisions(caught: Iterable[warnings.WarningMessage]) -> None:
    """Raises Refused if the model decided anything by a tensor's value: on other values it may decide otherwise."""
    # PyTorch checks its arguments, the seams ask for sizes that do not change, a cache layer whether it is empty.
    harmless = {Path(torch.__file__).parent, Path(__file__).parent, Path(seam("transformers.cache_utils", "__file__"))}
    for warning in caught:
        place = Path(warning.filename)
        decides = warning.category.__name__ == "TracerWarning" and "Converting a tensor" in str(warning.message)
        if decides and not harmless & {place, *place.parents}:
            raise Refused(
                f"{place.name}:{warning.lineno} lets Python decide by a tensor's value: a traced graph keeps the one "
                "answer that it was traced with"
            )


def _rows(model: Any) -> list[torch.Tensor]:
    """Returns the rehearsal's rows of token ids."""
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (length,), generator=generator) for length in _LENGTHS]


@torch.no_grad()
def _reference(model: Any) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Runs the model as it is.

    Returns:
        The logits [2, rows, vocabulary] of each row's last token but one and of its last, and (kv_heads, head) of each
        layer's cache.
    """
    model.set_attn_implementation("eager")
    logits = []
    for row in _rows(model):
        output = model(row[None], use_cache=True)
        logits.append(output.logits[0, -2:])
    kinds = tuple(seam("transformers.cache_utils", name) for name in ("DynamicLayer", "DynamicSlidingWindowLayer"))
    layers = []
    for layer in getattr(output.past_key_values, "layers", None) or [output.past_key_values]:
        if type(layer) not in kinds:
            raise Refused(f"its cache has a layer of class {type(layer).__name__}, expected {kinds[0].__name__}")
        if layer.keys is None:
            raise Refused("its cache has a layer that stays empty: attention does not use it")
        layers.append((layer.keys.shape[1], layer.keys.shape[3]))
    return torch.stack(logits, 1), layers


@torch.no_grad()
def _rehearse(patched: Any, reference: torch.Tensor, layers: Sequence[tuple[int, int]]) -> None:
    """Runs the marked model in PyTorch, with padding, and holds it against the model as it was.

    Raises:
        Refused: it gives other numbers.
    """
    rows = _rows(patched)
    width = max(_LENGTHS) - 1
    ids = torch.stack([torch.nn.functional.pad(row[:-1], (0, width - len(row) + 1)) for row in rows])
    places = torch.arange(width).repeat(len(rows), 1)
    places = torch.where(places < torch.tensor(_LENGTHS)[:, None] - 1, places, -1)
    cache = static_config.empty_cache(layers, batch=len(rows), capacity=max(_LENGTHS) + 1)
    prefill = patched(input_ids=ids, position_ids=places, past_key_values=cache)
    decode = patched(
        input_ids=torch.stack([row[-1:] for row in rows]),
        position_ids=torch.tensor(_LENGTHS)[:, None] - 1,
        past_key_values=list(prefill["past_key_values"]),
    )
    for step, output, expected in zip(("prefill", "decode"), (prefill, decode), reference, strict=True):
        error = (output["logits"][:, 0] - expected).abs().max() / expected.abs().max()
        if not error <= _TOLERANCE:
            raise Refused(f"the marked model gives other logits in {step}: {error:.1e} of the largest one off")
