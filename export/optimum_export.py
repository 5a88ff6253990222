"""PyTorch model in, ONNX files out, through Optimum's Python API; the model is loaded once and is the reference too."""

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rocline.errors import ExportError
from rocline.export import tasks
from rocline.export.quiet import one_line, quiet
from rocline.export.sources import Checkpoint
from rocline.runtime import onnx_file

# What a config.json may ask for that changes what a forward returns, and no number of it.
_RETURNS = {"return_dict": True, "torchscript": False, "output_attentions": False, "output_hidden_states": False}
# Checkpoints with another head have no pooler; feature-extraction returns the hidden states below it.
_UNUSED_WEIGHTS = {"feature-extraction": ("pooler.",)}


def check_config(checkpoint: Checkpoint, config: Mapping[str, Any], *, trust_remote_code: bool = False) -> None:
    """Refuses what a config.json already shows cannot be loaded.

    Raises:
        ExportError: the model needs its own Python code and that was not allowed, or its weights are quantised.
    """
    from transformers import CONFIG_MAPPING

    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
        raise ExportError(
            f"{checkpoint.name}: needs Python code that comes with the model (auto_map in config.json); read it, then "
            "pass --trust-remote-code to run it"
        )
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown")
        raise ExportError(f"{checkpoint.name}: weights are quantised ({method}), expected fp32, fp16 or bf16 weights")


def load_model(checkpoint: Checkpoint, config: Mapping[str, Any], task: str, *, trust_remote_code: bool = False) -> Any:
    """Loads the PyTorch model of a checkpoint in fp32, in evaluation mode, on the CPU.

    safetensors are preferred; torch weights are read with ``weights_only``, so that no pickle runs. Code that comes
    with the model runs only with ``trust_remote_code``.

    Raises:
        ExportError: the weights are damaged, want unpickling, lack tensors of the task's architecture, or hold NaN.
    """
    import torch
    from safetensors import SafetensorError

    with quiet():
        auto_class = tasks.manager().get_model_class_for_task(
            task, model_type=config["model_type"], library="transformers"
        )
        files = {"gguf_file": checkpoint.gguf.name} if checkpoint.gguf else {}
        try:
            model, loaded = auto_class.from_pretrained(
                checkpoint.folder,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **_RETURNS,
                **files,
            )
        except pickle.UnpicklingError as error:
            raise ExportError(
                f"{checkpoint.name}: its torch weights want to run code when read (pickle) and were refused; "
                "convert them to safetensors where you trust them"
            ) from error
        except SafetensorError as error:
            raise ExportError(f"{checkpoint.name}: weights are damaged: {one_line(error)}") from error
        except (OSError, ValueError, RuntimeError, KeyError, EOFError, ImportError) as error:
            raise ExportError(f"{checkpoint.name}: PyTorch cannot load it: {one_line(error)}") from error
    unused = _UNUSED_WEIGHTS.get(task, ())
    missing = sorted(key for key in loaded["missing_keys"] if not key.startswith(unused))
    if missing:
        raise ExportError(
            f"{checkpoint.name}: weights lack {len(missing)} tensors that task {task!r} needs, e.g. {missing[0]}; "
            "choose the task it was trained for"
        )
    _check_finite(model, checkpoint.name)
    return model.eval()


def _check_finite(model: Any, name: str) -> None:
    for tensor_name, tensor in model.state_dict().items():
        # The sum is NaN or infinite wherever an element is, and needs no second tensor of the weights' size.
        if tensor.is_floating_point() and not tensor.sum().isfinite() and tensor.isnan().any():
            raise ExportError(f"{name}: weights hold NaN, first in {tensor_name!r}: the checkpoint is broken")


def default_opset(model: Any, task: str) -> int:
    """Returns the opset Optimum exports this architecture with unless told otherwise."""
    opset: int = optimum_config(model, task).DEFAULT_ONNX_OPSET
    return opset


def trace(model: Any, task: str, folder: Path, *, opset: int) -> list[Path]:
    """Exports the model into ``folder``; returns the ONNX files, leftovers of merged decoders removed.

    Raises:
        ExportError: Optimum or PyTorch's tracer could not export it.
    """
    from optimum.exporters.onnx import export_models
    from optimum.exporters.utils import get_decoder_models_for_export, get_encoder_decoder_models_for_export

    with quiet(), restored(model), exact_attention(model):
        config = optimum_config(model, task)
        if model.config.is_encoder_decoder and tasks.TASKS[task].cached:
            parts = get_encoder_decoder_models_for_export(model, config)
        elif task == "text-generation":
            parts = get_decoder_models_for_export(model, config)
        else:
            parts = {"model": (model, config)}
        names = [f"{part}.onnx" for part in parts]
        try:
            shapes = _dummy_shapes(model.config)
            export_models(
                parts, folder, opset=opset, output_names=names, input_shapes=shapes, disable_dynamic_axes_fix=True
            )
            for name, (_, part) in zip(names, parts.values(), strict=True):
                if _has_unknown_axes(folder / name, part):
                    part.fix_dynamic_axes(folder / name, input_shapes=shapes, dtype="fp32")
            _, names = config.post_process_exported_models(folder, parts, names)
        except OSError:
            raise
        except Exception as error:
            raise ExportError(f"Optimum could not export the {task} model: {one_line(error)}") from error
    kept = [folder / name for name in dict.fromkeys(names)]
    for leftover in set(folder.glob("*.onnx")) - set(kept):
        leftover.unlink()
        leftover.with_name(leftover.name + "_data").unlink(missing_ok=True)
    return kept


def _dummy_shapes(config: Any) -> dict[str, int]:
    """Returns the sizes to trace with: Optimum's, and the one length of spectrogram that a Whisper takes."""
    from optimum.utils import DEFAULT_DUMMY_SHAPES

    shapes: dict[str, int] = dict(DEFAULT_DUMMY_SHAPES)
    if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        shapes["nb_max_frames"] = 2 * config.max_source_positions
    return shapes


def _has_unknown_axes(path: Path, config: Any) -> bool:
    """Tells whether the tracer named an axis of an output itself, which may be one of fixed size.

    Optimum finds out by loading the file into ONNX Runtime, which takes seconds for a large model.
    """
    known = {name for axes in (*config.inputs.values(), *config.outputs.values()) for name in axes.values()}
    sizes = [size for output in onnx_file.read(path).outputs for size in output.shape]
    return any(isinstance(size, str) and size not in known for size in sizes)


@contextlib.contextmanager
def restored(model: Any) -> Iterator[None]:
    """Undoes what Optimum sets in a model and in the configs of its parts: the model is the reference afterwards."""
    own_forward = "forward" in vars(model)
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}.values()
    before = [dict(vars(config)) for config in configs]
    try:
        yield
    finally:
        for config, values in zip(configs, before, strict=True):
            vars(config).clear()
            vars(config).update(values)
        if not own_forward:
            # Optimum puts back a forward that it made traceable.
            vars(model).pop("forward", None)


@contextlib.contextmanager
def exact_attention(model: Any) -> Iterator[None]:
    """Inside, a model that soft-caps its attention scores attends eagerly: PyTorch's fused attention drops the cap."""
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    before = model.config._attn_implementation
    if capped:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if capped:
            model.set_attn_implementation(before)


def optimum_config(model: Any, task: str) -> Any:
    """Returns Optimum's export config for a model and a task of `tasks.TASKS`."""
    name = tasks.optimum_task(task, model.config.model_type)
    constructor = tasks.manager().get_exporter_config_constructor(
        "onnx", model=model, task=name, library_name="transformers"
    )
    return constructor(model.config, int_dtype="int64", float_dtype="fp32")
