"""Creates ONNX Runtime sessions: quietly, with custom operators, and with errors of one line."""

import logging
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rocline import custom_ops
from rocline.errors import ModelError, RoclineError
from rocline.runtime import onnx_file, ort_log
from rocline.runtime.options import Options
from rocline.runtime.ort_log import LOGGER, Log, essence
from rocline.runtime.providers import CPU, Provider
from rocline.runtime.turns import new_turn

if TYPE_CHECKING:
    from rocline.runtime.devices import Stream

_LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_PLACED_ALL = re.compile(r"\s*All nodes placed on \[(\w+)\]\. Number of nodes: (\d+)")
_PLACED_SOME = re.compile(r"\s*Node\(s\) placed on \[(\w+)\]\. Number of nodes: (\d+)")
_PLACED_NODE = re.compile(r"\s+(\S+) \(.*\)")


@dataclass(frozen=True)
class Plan:
    """All that a session is made of, so that it can be made again.

    Attributes:
        path: the ONNX file.
        outline: what it says of itself.
        options: checked options.
        widen: whether bfloat16 is turned into float32 first.
    """

    path: Path
    outline: onnx_file.OnnxFile
    options: Options
    widen: bool

    def create(
        self,
        providers: Sequence[Provider],
        *,
        stream: "Stream | None" = None,
        capture: bool = False,
        severity: int = ort_log.FATAL,
        save: Callable[[Any], None] | None = None,
    ) -> tuple[Any, Log]:
        """Creates a session.

        Args:
            providers: those whose probe passed, in order.
            stream: what the provider that takes one queues all its work on.
            capture: whether runs must be fit for capture in a graph; a model that cannot be is refused.
            severity: what ONNX Runtime logs.
            save: sets what the onnxruntime.SessionOptions need to save the optimised graph.

        Returns:
            The onnxruntime.InferenceSession, and what was logged; nothing if only the CPU was asked.

        Raises:
            ModelError: this onnxruntime does not load the model.
            RoclineError: the custom operators that the model needs cannot be loaded.
        """
        import onnxruntime

        config = onnxruntime.SessionOptions()
        if LOGGER.isEnabledFor(logging.DEBUG):
            severity = min(severity, ort_log.WARNING)
        config.log_severity_level = severity
        session_options = self.options.session
        config.intra_op_num_threads = session_options.get("threads", 0)
        config.enable_cpu_mem_arena = session_options.get("memory_arena", True)
        level = _LEVELS[session_options.get("graph_optimization", "all")]
        config.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        if self.outline.bfloat16 and not self.widen:
            # ONNX Runtime 1.22 makes one node of a sum and a LayerNormalization whose type it then refuses in bfloat16.
            config.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
        if save is not None:
            save(config)
        if custom_ops.DOMAIN in self.outline.opsets:
            self._register_custom_ops(config)
        model: str | bytes = str(self.path)
        weights: list[Any] = []
        if self.widen:
            from rocline.runtime.widen import load_widened

            widened = load_widened(self.path)
            model = widened.model
            weights = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in widened.weights.values()]
            config.add_external_initializers(list(widened.weights), weights)
        chosen = [
            (row.ort_name, {**self.options.providers.get(row.name, {}), **row.stream_options(stream, capture)})
            for row in providers
        ]
        # A provider library writes to stderr whatever severity the session has; the CPU provider is built in.
        quiet = severity == ort_log.FATAL and all(row is CPU for row in providers)
        logging_to: AbstractContextManager[Log] = nullcontext(Log()) if quiet else ort_log.captured()
        try:
            with logging_to as log:
                session = onnxruntime.InferenceSession(model, config, providers=chosen)
        except Exception as error:
            raise ModelError(f"{self.path}: {_load_problem(essence(error), onnxruntime.__version__)}") from error
        # ONNX Runtime reads these where they are: they must live as long as the session.
        session.rocline_weights = weights
        # Else a failing run is tried again on other providers, with a print.
        session.disable_fallback()
        return session, log

    def placement(self, providers: Sequence[Provider]) -> dict[str, dict[str, int]]:
        """Returns node counts by provider and operator, most frequent first, from the log of another session.

        Where one provider has every node, the log does not list them: they are counted in the optimised graph, which
        that session also saves. A graph capture of another thread is waited for, as with any new session.
        """
        with new_turn(), tempfile.TemporaryDirectory(prefix="rocline-") as folder:
            optimized = Path(folder) / "optimized.onnx"
            try:
                _, log = self.create(
                    providers, severity=ort_log.VERBOSE, save=partial(_save_without_weights, optimized)
                )
            except ModelError:
                # ONNX Runtime 1.22 cannot save the weights of some graphs with subgraphs in a file of their own.
                _, log = self.create(providers, severity=ort_log.VERBOSE, save=partial(_save, optimized))
            for line in log.lines:
                whole = _PLACED_ALL.fullmatch(line)
                if whole:
                    return {whole[1]: _by_type(onnx_file.read(optimized).operators)}
        return _listed_nodes(log.lines)

    def widened(self) -> "Plan":
        """Returns the same plan with bfloat16 turned into float32."""
        return replace(self, widen=True)

    def _register_custom_ops(self, config: Any) -> None:
        try:
            custom_ops.register(config)
        except RoclineError as error:
            raise RoclineError(f"{self.path}: needs rocline's custom operators: {essence(error)}") from error


def free(session: Any) -> None:
    """Frees what an onnxruntime.InferenceSession wraps, whoever still has the Python object.

    While the error of a run is handled, its traceback has it in a frame. Each of these keeps the wrapped object.
    """
    for name in ("sess", "sess_options", "inputs_meta", "outputs_meta", "overridable_initializers", "model_meta"):
        setattr(session, f"_{name}", None)
    session._profiling_start_time_ns = None


STAGING = frozenset({"Concat", "GatherND", "Resize", "ScatterND", "Split", "Upsample"})
"""Operators whose GPU kernels read tables that ONNX Runtime stages in pinned memory.

That memory is given back at the end of a run that waits; else only by a callback on the stream when the session is
gone. The callback is then the last to let go of the arena, which frees its memory: a call of HIP from inside HIP, which
ends the process (rocm_stream_handle.cc and cuda_stream_handle.cc of ONNX Runtime 1.22: ReleaseCpuBufferCallback).
"""


def run_options(*, wait: bool) -> Any:
    """Returns onnxruntime.RunOptions for a GPU: ``wait`` until the stream is done, or leave that to the caller."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    # `rocline.runtime.capture` captures; a graph of ONNX Runtime's own would be for all runs, whatever their buffers.
    options.add_run_config_entry("gpu_graph_id", "-1")
    if not wait:
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def _save(path: Path, config: Any) -> None:
    config.optimized_model_filepath = str(path)


def _save_without_weights(path: Path, config: Any) -> None:
    _save(path, config)
    # ONNX Runtime writes the weights through this link, and then removes the link.
    (path.parent / "weights").symlink_to(os.devnull)
    config.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
    config.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "0")


def _by_type(operators: Counter[str]) -> dict[str, int]:
    """Drops the domains, which the log does not have either."""
    counts: Counter[str] = Counter()
    for name, count in operators.items():
        counts[name.rpartition("::")[2]] += count
    return dict(counts.most_common())


def _listed_nodes(log: Sequence[str]) -> dict[str, dict[str, int]]:
    placement: dict[str, Counter[str]] = {}
    left, current = 0, Counter[str]()
    for line in log:
        header = _PLACED_SOME.fullmatch(line)
        if header:
            left, current = int(header[2]), placement.setdefault(header[1], Counter())
            continue
        node = _PLACED_NODE.fullmatch(line) if left else None
        if node:
            current[node[1]] += 1
            left -= 1
    return {provider: dict(counts.most_common()) for provider, counts in placement.items()}


def _load_problem(message: str, version: str) -> str:
    """Says in few words what ONNX Runtime says at length."""
    ir = re.search(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)", message)
    if ir:
        return f"IR version {ir[1]}, onnxruntime {version} loads up to {ir[2]}: export the model again with rocline"
    opset = re.search(r"Opset (\d+) is under development.*support for domain (\S+) is till opset (\d+)", message)
    if opset:
        return (
            f"opset {opset[1]} of {opset[2]}, onnxruntime {version} loads up to {opset[3]}: "
            "export the model again with rocline"
        )
    return f"onnxruntime {version} cannot load it: {message}"
