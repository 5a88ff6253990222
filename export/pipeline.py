"""From a source to a model folder: resolve, load, trace, hold to the target, optimise, convert, compare, describe."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rocline import custom_ops
from rocline.errors import ExportError
from rocline.export import gguf_files, graph_files, parity, sources, staging, targets, tasks
from rocline.export.quiet import quiet
from rocline.export.sources import Checkpoint
from rocline.runtime.manifest import CustomOps, Fusion, Manifest, OnnxModel, Parity, Source, hash_files

if TYPE_CHECKING:
    from rocline.export.fitting import Fused

CACHES = ("static", "growing")
_TOOLS = (
    "rocline",
    "torch",
    "transformers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "gguf",
    "onnxruntime",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
    "onnxruntime-gpu",
)


@dataclass(frozen=True)
class _Request:
    """What the caller asked for, checked."""

    checkpoint: Checkpoint
    task: str | None
    dtype: str
    target: targets.Target
    cache: str
    sampling_head: bool
    external_data: bool
    trust_remote_code: bool
    opset: int | None
    bound: float
    progress: Callable[[str], None]


def export_model(
    source: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    dtype: str = "fp32",
    target: str = "rocm",
    cache: str = "static",
    sampling_head: bool = False,
    external_data: bool = False,
    force: bool = False,
    trust_remote_code: bool = False,
    opset: int | None = None,
    progress: Callable[[str], None] | None = None,
    parity_bound: float | None = None,
) -> Manifest:
    """Exports a model into the folder ``out`` and returns the manifest written there.

    Args:
        source: a recipe's name or path, a Hugging Face folder, a .gguf or .onnx file, or OWNER/NAME[@REVISION] on the
            hub.
        out: the folder to make. It appears when everything has succeeded; until then nothing there changes.
        task: a name of `rocline.export.tasks.TASKS`; None takes the recipe's, or what the architecture tells.
        dtype: ``fp32``, ``fp16`` or ``bf16``, for weights and activations.
        target: a name of `rocline.export.targets.available`: the runtime the graph is made for.
        cache: layout of the KV cache of a decoder-only model. ``static``: one buffer of fixed size a layer, in a fused
            graph; models and targets that do not allow it get the other one, and a note says why. ``growing``:
            Optimum's graph as it is.
        sampling_head: with a static cache, let the graph choose the next token too, in its output ``next_token``.
        external_data: keep the weights in ``NAME.onnx.data`` beside the graph; always done past 2 GB.
        force: replace the model folder at ``out``.
        trust_remote_code: run Python code that comes with the model.
        opset: of the default operator domain; None takes Optimum's for the architecture, as far as the target loads it.
        progress: called with each stage's name when it begins.
        parity_bound: the largest accepted difference to PyTorch, where an output's values pass 1 relative to its
            largest; None takes the recipe's or `parity.BOUNDS`.

    Raises:
        ExportError: the source, the destination or an argument cannot be used, or the export failed.
        ParityError: the exported model does not give PyTorch's numbers.
    """
    out = Path(out)
    staging.check_destination(out, force=force)
    loaded_target = targets.load(target)
    if cache not in CACHES:
        raise ExportError(f"cache {cache!r}: expected {' or '.join(CACHES)}")
    if sampling_head and cache != "static":
        raise ExportError(f"sampling_head: cache is {cache!r}, expected 'static'")
    if dtype not in loaded_target.dtypes:
        raise ExportError(f"dtype {dtype!r}: target {target!r} runs {', '.join(loaded_target.dtypes)}")
    if opset is not None:
        graph_files.check_opset(opset, loaded_target)
    if task is not None:
        tasks.check_name(task)
    report = progress or (lambda stage: None)
    with staging.staged(out, force=force) as folder, tempfile.TemporaryDirectory(prefix="rocline-") as scratch:
        report(f"reading {source}")
        checkpoint = sources.resolve(source, scratch=Path(scratch), trust_remote_code=trust_remote_code)
        recipe = checkpoint.recipe
        bound = parity_bound
        if bound is None:
            bound = recipe.parity if recipe and recipe.parity and dtype == "fp32" else parity.BOUNDS[dtype]
        request = _Request(
            checkpoint=checkpoint,
            task=task or (recipe.task if recipe else None),
            dtype=dtype,
            target=loaded_target,
            cache=cache,
            sampling_head=sampling_head,
            external_data=external_data,
            trust_remote_code=trust_remote_code,
            opset=opset,
            bound=bound,
            progress=report,
        )
        with gguf_files.read_once() if checkpoint.gguf else contextlib.nullcontext():
            manifest = _adopt(request, folder) if checkpoint.onnx else _export(request, folder)
        manifest.write(folder)
    return manifest


def _export(request: _Request, folder: Path) -> Manifest:
    checkpoint, target, report = request.checkpoint, request.target, request.progress
    report("importing PyTorch, transformers and Optimum")
    from rocline.export import companions, fitting, fusion_report, optimum_export, reference, samples, sentences

    config = checkpoint.config()
    optimum_export.check_config(checkpoint, config, trust_remote_code=request.trust_remote_code)
    task = tasks.choose(config, request.task, source=checkpoint.name, sentence_embedder=checkpoint.sentence_embedder)
    report("loading the weights")
    model = optimum_export.load_model(checkpoint, config, task, trust_remote_code=request.trust_remote_code)
    notes = companions.write(checkpoint, model, folder, trust_remote_code=request.trust_remote_code)
    inputs = samples.make(task, folder, model.config)
    if inputs.seeded:
        notes.append(f"compared on {inputs.description}")
    report(f"exporting {type(model).__name__} to ONNX")
    pooling = None
    if checkpoint.sentence_embedder and task == "feature-extraction" and target.custom_ops:
        pooling = sentences.pooling(folder)
    onnx_files, fused = _trace(request, model, task, folder, notes, pooling)
    report("running PyTorch")
    with quiet():
        cases = reference.cases(model, task, inputs, onnx_files, pooling=pooling)
        report(f"fitting the graph to {target.name}")
        for name, file in onnx_files.items():
            own = [case for case in cases if case.model == name]
            notes += fitting.finish(file, own, target, request.dtype, external_data=request.external_data)
        report("comparing with PyTorch")
        cases = reference.refed(cases, onnx_files)
        measured = parity.measure(
            onnx_files,
            cases,
            bound=request.bound,
            against=f"torch {version('torch')} float32",
            inputs=inputs.description,
            target=target,
            torch_model=model,
        )
    fusion = {
        name: fusion_report.describe(file, fused[name].outcomes, nodes_before=fused[name].nodes_before, target=target)
        for name, file in onnx_files.items()
    }
    return _describe(request, task, folder, list(onnx_files.values()), measured, notes, fusion)


def _trace(
    request: _Request, model: Any, task: str, folder: Path, notes: list[str], pooling: tuple[str, bool] | None
) -> tuple[dict[str, Path], dict[str, "Fused"]]:
    """Traces and fuses the model; returns its fp32 files and what was done to each, by name. Adds to ``notes``."""
    from rocline.export import fitting, fusion_report, markers, optimum_export, static_decoder

    target = request.target
    opset = request.opset or min(optimum_export.default_opset(model, task), target.max_opset)
    decodes = task == "text-generation" and not model.config.is_encoder_decoder
    refused, told = [], len(notes)
    if decodes and request.cache == "static":
        try:
            file, done = static_decoder.export(
                model, folder, target, request.dtype, opset=opset, sampling_head=request.sampling_head
            )
            return {file.name: file}, {file.name: done}
        except markers.Refused as reason:
            head = ", and no sampling head" if request.sampling_head else ""
            notes.append(f"cache 'growing' instead of 'static'{head}: {reason}")
            refused.append(static_decoder.refusal(reason))
    try:
        files = optimum_export.trace(model, task, folder, opset=opset)
    except ExportError as error:
        raise ExportError("; ".join([str(error), *notes[told:]])) from error
    if decodes:
        fused = {file.name: fitting.Fused(tuple(refused), fusion_report.count_nodes(file)) for file in files}
    else:
        request.progress(f"fusing the graph for {target.name}")
        fused = {file.name: fitting.fuse(file, model.config, target, request.dtype, pooling=pooling) for file in files}
    return {file.name: file for file in files}, fused


def _adopt(request: _Request, folder: Path) -> Manifest:
    checkpoint = request.checkpoint
    request.progress("checking and copying the ONNX files")
    files = []
    for path in checkpoint.onnx:
        file = folder / ("model.onnx" if len(checkpoint.onnx) == 1 else path.name)
        graph_files.adopt(path, file, request.target)
        files.append(file)
    for extra in checkpoint.extras:
        shutil.copyfile(extra, folder / extra.name)
    dtype = graph_files.weight_dtype(files[0])
    if request.dtype != dtype:
        raise ExportError(f"{checkpoint.name}: holds {dtype} weights and is adopted as it is: pass --dtype {dtype}")
    notes = ["adopted as it was: there is no PyTorch model to compare with"]
    return _describe(request, request.task or "unknown", folder, files, (), notes, {})


def _describe(
    request: _Request,
    task: str,
    folder: Path,
    files: list[Path],
    measured: tuple[Parity, ...],
    notes: list[str],
    fusion: dict[str, Fusion],
) -> Manifest:
    request.progress("hashing the files")
    checkpoint = request.checkpoint
    models = {file.name: graph_files.interface(file) for file in files}
    ours = any(custom_ops.DOMAIN in model.opsets for model in models.values())
    return Manifest(
        source=Source(checkpoint.kind, checkpoint.name, checkpoint.revision, checkpoint.licence),
        task=task,
        dtype=request.dtype,
        target=request.target.name,
        cache=_cache(models.values()),
        models=models,
        custom_ops=CustomOps(custom_ops.DOMAIN, custom_ops.VERSION) if ours else None,
        tools=_tool_versions(),
        files=hash_files(folder),
        parity=measured,
        notes=tuple(dict.fromkeys(notes)),
        fusion=fusion,
    )


def _cache(models: Iterable[OnnxModel]) -> str:
    """Returns the layout of the KV cache: static where what comes out has the shape of what goes in."""
    past, present = "past_key_values.", "present."
    layouts = set()
    for model in models:
        shapes = {output.name: output.shape for output in model.outputs}
        for value in model.inputs:
            if value.name.startswith(past):
                kept = value.shape == shapes.get(value.name.replace(past, present, 1))
                layouts.add("static" if kept else "growing")
    return layouts.pop() if len(layouts) == 1 else "growing" if layouts else "none"


def _tool_versions() -> dict[str, str]:
    """Returns the versions of the packages that made the folder, of those in `_TOOLS` that are installed."""
    found = {}
    for name in _TOOLS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
