"""What PyTorch says: for every ONNX file of a folder the exact feeds and the outputs of the fp32 torch model.

The ONNX file decides what is fed. Its inputs tell which part of the model it is: a whole model, the encoder of an
encoder-decoder, a decoder with a KV cache, or a merged decoder with the switch ``use_cache_branch``. PyTorch gets the
same inputs by the same names, so that both sides apply the same defaults to what is not given.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rocline.errors import ExportError, RoclineError
from rocline.export import optimum_export, sentences, static_reference, torch_cache
from rocline.export.quiet import one_line
from rocline.export.samples import Samples
from rocline.export.torch_cache import PAST, PRESENT
from rocline.runtime.manifest import OnnxModel, TensorSpec

Arrays = dict[str, npt.NDArray[Any]]

# Tokens of the decoder's prefix in encoder-decoders: the start token, then what the model itself writes.
_PREFIX = 4


@dataclass(frozen=True)
class Case:
    """One run of one ONNX file, and PyTorch's outputs for it.

    Attributes:
        model: name of the ONNX file.
        step: what the run is, e.g. ``prefill``.
        feeds: inputs by name, in the dtypes that the file takes (bf16 inputs: float32 rounded to bf16).
        expected: PyTorch's outputs by the file's output names, float32 or integer.
        real: for outputs with padded positions, a bool array broadcast over the leading axes that is False there:
            what a model computes at padding is nobody's contract (a row that attends to nothing is NaN in one
            implementation and a mean in another), so those positions are not compared.
        mask: [batch, sequence], where the tokens fed are padded: False at the padding.
        replay: runs the torch model on this case again, e.g. to look at its layers.
        root: the torch module that the file holds, whose layers its tensor names follow.
    """

    model: str
    step: str
    feeds: Arrays
    expected: Arrays
    real: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    mask: npt.NDArray[np.bool_] | None = None
    replay: Callable[[], None] = field(default=lambda: None, compare=False)
    root: Any = field(default=None, compare=False)


def cases(
    torch_model: Any,
    task: str,
    samples: Samples,
    onnx_files: dict[str, Path],
    *,
    pooling: tuple[str, bool] | None = None,
) -> list[Case]:
    """Returns the runs that show whether ONNX files follow a torch model.

    Args:
        torch_model: in fp32, on the CPU, in evaluation mode.
        task: Hugging Face task name, for messages.
        samples: what to feed, by the torch model's names.
        onnx_files: paths by file name. A decoder with a cache gets, for each batch, a prefill with an empty cache and a
            decode step with the cache that PyTorch made there; one whose cache has a fixed size also gets the second
            half of a prefill in chunks; an encoder-decoder's decoder gets both of its branches.
        pooling: of a sentence embedder with a head for it, from `rocline.export.sentences.pooling`.

    Raises:
        ExportError: a file has an input that is not known how to fill, or an output that the torch model lacks; or the
            torch model fails on the samples.
    """
    import torch

    from rocline.export import graph_files

    found: list[Case] = []
    with torch.inference_mode(), optimum_export.exact_attention(torch_model):
        for name, path in onnx_files.items():
            file = _File(name, graph_files.interface(path), torch_model, task, pooling)
            try:
                for batch in samples.inputs:
                    found.extend(file.cases(batch))
            except RoclineError:
                raise
            except Exception as error:
                raise ExportError(
                    f"{name}: PyTorch fails to run the {task} model on {samples.description}: {one_line(error)}"
                ) from error
    return found


def refed(found: Iterable[Case], onnx_files: Mapping[str, Path]) -> list[Case]:
    """Returns the same runs for files whose dtype has changed since: what is fed has the types they take now."""
    from rocline.export import graph_files

    inputs = {
        name: {spec.name: spec for spec in graph_files.interface(path).inputs} for name, path in onnx_files.items()
    }
    return [
        replace(case, feeds={name: _as_fed(array, inputs[case.model][name]) for name, array in case.feeds.items()})
        for case in found
    ]


class _File:
    """One ONNX file beside the torch model it came from."""

    def __init__(self, name: str, interface: OnnxModel, torch_model: Any, task: str, pooling: tuple[str, bool] | None):
        self.name = name
        self.pooling = pooling
        self.inputs = {spec.name: spec for spec in interface.inputs}
        self.outputs = {spec.name: spec for spec in interface.outputs}
        self.model = torch_model
        self.task = task

    def cases(self, batch: Arrays) -> Iterator[Case]:
        cached = any(name.startswith(PAST) for name in self.inputs)
        if cached and "encoder_hidden_states" in self.inputs:
            return self._encoder_decoder(batch)
        if cached and self._is_static():
            return self._static(batch)
        if cached:
            return self._decoder(batch)
        if "encoder" in self.name and self.model.config.is_encoder_decoder:
            return self._whole(batch, self.model.get_encoder())
        return self._whole(batch, self.model)

    def _whole(self, batch: Arrays, module: Any) -> Iterator[Case]:
        arrays = self._filled(batch)

        def run() -> Any:
            return _call(module, arrays)

        output = run()
        expected = {name: self._take(output, name) for name in self.outputs if name != sentences.OUTPUT}
        if sentences.OUTPUT in self.outputs and self.pooling is not None:
            hidden = output.last_hidden_state.numpy()
            expected[sentences.OUTPUT] = sentences.pooled(hidden, arrays["attention_mask"], self.pooling)
        yield self._case("forward", arrays, expected, run, module, mask=batch.get("attention_mask"))

    def _decoder(self, batch: Arrays) -> Iterator[Case]:
        mask = batch.get("attention_mask", np.ones_like(batch["input_ids"]))
        arrays = self._filled(
            {"input_ids": batch["input_ids"], "attention_mask": mask, "position_ids": _positions(mask)}
        )
        past = self._empty_past(batch=len(mask), length=0)
        case = self._decoder_step("prefill", arrays, past, key_mask=mask, query_mask=mask)
        yield case

        last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
        rows = np.arange(len(mask))
        longer = np.concatenate([mask, np.ones((len(mask), 1), mask.dtype)], axis=1)
        arrays = self._filled(
            {
                "input_ids": case.expected["logits"][rows, last].argmax(-1)[:, None],
                "attention_mask": longer,
                "position_ids": mask.sum(axis=1, keepdims=True),
            }
        )
        past = {name: case.expected[name.replace(PAST, PRESENT)] for name in past}
        yield self._decoder_step("decode step", arrays, past, key_mask=longer, query_mask=None)

    def _is_static(self) -> bool:
        """Tells whether the cache has a fixed size: what comes out is what went in, with slots replaced."""
        past = {name: spec for name, spec in self.inputs.items() if name.startswith(PAST)}
        return all(spec.shape == self.outputs[name.replace(PAST, PRESENT)].shape for name, spec in past.items())

    def _static(self, batch: Arrays) -> Iterator[Case]:
        mask = batch.get("attention_mask", np.ones_like(batch["input_ids"]))
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for step in static_reference.steps(self.model, batch["input_ids"], mask, most):
            yield Case(
                self.name,
                step.name,
                {name: _as_fed(step.arrays[name], spec) for name, spec in self.inputs.items()},
                step.expected,
                {name: step.live for name in step.expected if name.startswith(PRESENT)},
                None if step.tokens.all() else step.tokens,
                self._replay(step.run),
                self.model,
            )

    def _replay(self, run: Callable[[], Any]) -> Callable[[], None]:
        import torch

        def replay() -> None:
            with torch.inference_mode(), optimum_export.exact_attention(self.model):
                run()

        return replay

    def _decoder_step(
        self,
        step: str,
        arrays: Arrays,
        past: Arrays,
        *,
        key_mask: npt.NDArray[Any],
        query_mask: npt.NDArray[Any] | None,
    ) -> Case:
        def run() -> Any:
            return self.model(**_tensors(arrays), past_key_values=torch_cache.growing(past), use_cache=True)

        output = run()
        expected = {name: self._take(output, name) for name in self.outputs if not name.startswith(PRESENT)}
        expected |= self._presents(output.past_key_values)
        unkept = sorted(self.outputs.keys() - expected.keys())
        if unkept:
            raise ExportError(f"{self.name}: output {unkept[0]!r}: {type(self.model).__name__} keeps no such cache")
        return self._case(step, arrays | past, expected, run, self.model, mask=query_mask, key_mask=key_mask)

    def _encoder_decoder(self, batch: Arrays) -> Iterator[Case]:
        import torch

        encoder = self.model.get_encoder()
        wanted = {name: batch[name] for name in batch if name in _parameters(encoder)}
        hidden = _call(encoder, wanted).last_hidden_state
        mask = batch.get("attention_mask") if "encoder_attention_mask" in self.inputs else None
        common = {"encoder_hidden_states": hidden.numpy()}
        if mask is not None:
            common["encoder_attention_mask"] = mask

        def run(ids: npt.NDArray[Any], past: Arrays) -> Any:
            masks = {} if mask is None else {"attention_mask": torch.from_numpy(mask)}
            return self.model(
                encoder_outputs=(hidden,),
                decoder_input_ids=torch.from_numpy(ids),
                past_key_values=torch_cache.encoder_decoder(past) if past else None,
                use_cache=True,
                **masks,
            )

        ids = np.full((len(hidden), 1), self._start_token(), np.int64)
        while ids.shape[1] < _PREFIX:
            written = run(ids, {}).logits[:, -1:].argmax(-1).numpy()
            ids = np.concatenate([ids, written], axis=1)
        output = run(ids, {})
        cache = output.past_key_values
        expected = {"logits": output.logits.numpy()}
        expected |= self._presents(cache, ".decoder") | self._presents(cache.cross_attention_cache, ".encoder")
        arrays = common | {"input_ids": ids, "use_cache_branch": np.array([False])}
        # The branch without a cache ignores its past inputs, but they have to be there.
        unused = self._empty_past(batch=len(hidden), length=1)
        yield self._case(
            "no cache", arrays | unused, expected, lambda: run(ids, {}), self.model, mask=None, cross_mask=mask
        )

        past = {name: expected[name.replace(PAST, PRESENT)] for name in unused}
        following = output.logits[:, -1:].argmax(-1).numpy()
        output = run(following, past)
        expected = {"logits": output.logits.numpy()}
        # The cached branch does not compute the encoder's keys and values again; its outputs for them are empty.
        expected |= self._presents(output.past_key_values, ".decoder")
        arrays = common | {"input_ids": following, "use_cache_branch": np.array([True])}
        yield self._case("with cache", arrays | past, expected, lambda: run(following, past), self.model, mask=None)

    def _start_token(self) -> int:
        for config in (getattr(self.model, "generation_config", None), self.model.config):
            token = getattr(config, "decoder_start_token_id", None)
            if token is not None:
                return int(token)
        return 0

    def _filled(self, given: Arrays) -> Arrays:
        """Returns an array for each input of the file that is neither cache nor switch."""
        shape = next(iter(given.values())).shape[:2]
        made: Arrays = {}
        for name in self.inputs:
            if name.startswith(PAST):
                continue
            if name in given:
                made[name] = given[name]
            elif name == "token_type_ids":
                made[name] = np.zeros(shape, np.int64)
            elif name == "position_ids":
                made[name] = _positions(given.get("attention_mask", np.ones(shape, np.int64)))
            elif name in ("attention_mask", "decoder_attention_mask"):
                made[name] = np.ones(shape, np.int64)
            elif name == "decoder_input_ids":
                made[name] = np.full((shape[0], 1), self._start_token(), np.int64)
            else:
                raise ExportError(
                    f"{self.name}: input {name!r} of the {self.task} model cannot be filled; known are {sorted(given)}"
                )
        return made

    def _take(self, output: Any, name: str) -> npt.NDArray[Any]:
        value = getattr(output, name, None)
        if value is None:
            raise ExportError(
                f"{self.name}: output {name!r} is not among those of {type(self.model).__name__}: {list(output.keys())}"
            )
        array: npt.NDArray[Any] = value.numpy()
        return array

    def _presents(self, cache: Any, infix: str = "") -> Arrays:
        return {name: array for name, array in torch_cache.presents(cache, infix).items() if name in self.outputs}

    def _empty_past(self, *, batch: int, length: int) -> Arrays:
        past = {}
        for name, spec in self.inputs.items():
            if name.startswith(PAST):
                sizes = [size if isinstance(size, int) else length for size in spec.shape]
                past[name] = np.zeros((batch, *sizes[1:]), np.float32)
        return past

    def _case(
        self,
        step: str,
        arrays: Arrays,
        expected: Arrays,
        run: Callable[[], Any],
        root: Any,
        *,
        mask: npt.NDArray[Any] | None,
        key_mask: npt.NDArray[Any] | None = None,
        cross_mask: npt.NDArray[Any] | None = None,
    ) -> Case:
        real = {}
        for name, array in expected.items():
            if name.startswith(PRESENT):
                over = cross_mask if ".encoder." in name else key_mask
                if over is not None and not over.all():
                    real[name] = over.astype(bool)[:, None, :]
            elif mask is not None and not mask.all() and array.shape[:2] == mask.shape and self._varies(name):
                real[name] = mask.astype(bool)
        feeds = {name: _as_fed(array, self.inputs[name]) for name, array in arrays.items()}

        tokens = None if mask is None or mask.all() else mask.astype(bool)
        return Case(self.name, step, feeds, expected, real, tokens, self._replay(run), root)

    def _varies(self, output: str) -> bool:
        """Tells whether an output's second axis is a sequence: a symbol, not a size that happens to be equal."""
        return isinstance(self.outputs[output].shape[1], str)


def _positions(mask: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Returns the position of each token among its row's real tokens; padding gets 0."""
    positions: npt.NDArray[np.int64] = mask.astype(np.int64).cumsum(axis=1) - 1
    return np.maximum(positions, 0)


def _as_fed(array: npt.NDArray[Any], spec: TensorSpec) -> npt.NDArray[Any]:
    if spec.dtype == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16).astype(np.float32)
    return np.ascontiguousarray(array.astype(spec.dtype))


def _tensors(arrays: Arrays) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _call(module: Any, arrays: Arrays) -> Any:
    # A config that asks for a cache must not make an encoder try to keep one.
    cache = {"use_cache": False} if "use_cache" in _parameters(module) else {}
    return module(**_tensors(arrays), **cache)


def _parameters(module: Any) -> set[str]:
    import inspect

    return set(inspect.signature(module.forward).parameters)
