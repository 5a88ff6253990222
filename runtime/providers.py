"""The execution providers rocline knows: one row each, and nothing about a provider stands anywhere else."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from rocline.errors import ProviderError

if TYPE_CHECKING:
    from rocline.runtime.devices import Stream

OptionType = type[bool] | range | type[str] | tuple[str, ...]
"""What an option takes: true or false, a whole number of a range, text, or one of the names listed."""

COUNT = range(1 << 31)
"""Whole numbers that ONNX Runtime keeps in an ``int``."""
BYTES = range(1 << 64)
"""Whole numbers that it keeps in a ``size_t``."""


@dataclass(frozen=True)
class Provider:
    """One execution provider.

    Attributes:
        name: short name, as the command line takes it.
        ort_name: ONNX Runtime's name.
        library: file name of the provider library beside onnxruntime's own; None if it is built in.
        vendor: whose GPU it needs, a key of `rocline.runtime.probe.DEVICES`; None for the CPU.
        device: ONNX Runtime's device string for its memory.
        options: what each of its options takes. Those that the session sets are not among them (`SESSION_SETS`), nor is
            ``device_id``, the session's own argument.
        shared: `SHARED_OPTIONS` that it has, with what they are called there.
        runs_custom_ops: whether it runs custom-operator kernels; else such a node runs on the CPU.
        backend: whose memory and streams a session on it works with, a kind of `rocline.runtime.devices.open_device`:
            ``cpu`` where the provider takes no stream of the caller's and copies by itself.
        capture_option: its option that makes runs fit for graph capture, if it has one.
        extra: the extra of rocline that installs an onnxruntime with it.
        stack: the software that brings the libraries it needs.
    """

    name: str
    ort_name: str
    library: str | None
    vendor: str | None
    device: str
    options: Mapping[str, OptionType]
    shared: Mapping[str, tuple[str, ...]]
    runs_custom_ops: bool
    backend: str
    extra: str
    stack: str = field(default="")
    capture_option: str = field(default="")

    @property
    def takes_user_stream(self) -> bool:
        """Whether a session on it has a stream of its own that all its work is queued on."""
        return self.backend != "cpu"

    def stream_options(self, stream: "Stream | None", capture: bool) -> dict[str, str]:
        """Returns the options that put its work on ``stream``; none if that is no stream of its kind.

        Args:
            stream: the session's stream.
            capture: whether runs must be fit for graph capture.
        """
        if stream is None or stream.device.kind != self.backend:
            return {}
        # A decimal number: ONNX Runtime drops the provider without an error if it is hexadecimal.
        options = {"user_compute_stream": str(stream.handle)}
        return {**options, self.capture_option: "1"} if capture else options


SHARED_OPTIONS: Mapping[str, OptionType] = MappingProxyType({"memory_limit": BYTES, "tuning": bool})
"""Options that several providers have under names of their own: bytes of GPU memory that ONNX Runtime may take for
itself, and whether kernels are timed and chosen while the first runs go on."""

_OWN_STREAM = "every session has a stream of its own; share another session's, or a Stream, with stream="
_OWN_CAPTURE = "give graph_capture=True instead, which a binding verifies before it trusts it"
_ON_THE_STREAM = "all memory and all copies of a session follow its stream"
SESSION_SETS: Mapping[str, str] = MappingProxyType(
    {
        "user_compute_stream": _OWN_STREAM,
        "has_user_compute_stream": _OWN_STREAM,
        "enable_hip_graph": _OWN_CAPTURE,
        "enable_cuda_graph": _OWN_CAPTURE,
        "do_copy_in_default_stream": _ON_THE_STREAM,
        "use_ep_level_unified_stream": _ON_THE_STREAM,
        "gpu_external_alloc": _ON_THE_STREAM,
        "gpu_external_free": _ON_THE_STREAM,
        "gpu_external_empty_cache": _ON_THE_STREAM,
    }
)
"""Options of ONNX Runtime's providers that belong to the session, and what to do instead of setting them."""

_SHARED = {"memory_limit": ("gpu_mem_limit",), "tuning": ("tunable_op_enable", "tunable_op_tuning_enable")}
_ARENA = ("kNextPowerOfTwo", "kSameAsRequested")

_ROWS = (
    Provider(
        name="rocm",
        ort_name="ROCMExecutionProvider",
        library="libonnxruntime_providers_rocm.so",
        vendor="amd",
        # ONNX Runtime's Python API calls HIP memory "cuda" too, and rejects "hip" and "rocm".
        device="cuda",
        options={
            "gpu_mem_limit": BYTES,
            "arena_extend_strategy": _ARENA,
            "tunable_op_enable": bool,
            "tunable_op_tuning_enable": bool,
            "tunable_op_max_tuning_duration_ms": COUNT,
            "miopen_conv_exhaustive_search": bool,
            "miopen_conv_use_max_workspace": bool,
        },
        shared=_SHARED,
        runs_custom_ops=True,
        backend="hip",
        extra="rocm",
        stack="ROCm",
        capture_option="enable_hip_graph",
    ),
    Provider(
        name="migraphx",
        ort_name="MIGraphXExecutionProvider",
        library="libonnxruntime_providers_migraphx.so",
        vendor="amd",
        device="cuda",
        options={
            "migraphx_fp16_enable": bool,
            "migraphx_bf16_enable": bool,
            "migraphx_fp8_enable": bool,
            "migraphx_int8_enable": bool,
            "migraphx_int8_calibration_table_name": str,
            "migraphx_int8_use_native_calibration_table": bool,
            "migraphx_model_cache_dir": str,
            "migraphx_exhaustive_tune": bool,
            "migraphx_mem_limit": BYTES,
            "migraphx_arena_extend_strategy": _ARENA,
        },
        shared={"memory_limit": ("migraphx_mem_limit",), "tuning": ("migraphx_exhaustive_tune",)},
        runs_custom_ops=False,
        backend="cpu",
        extra="migraphx",
        stack="ROCm with MIGraphX",
    ),
    Provider(
        name="cuda",
        ort_name="CUDAExecutionProvider",
        library="libonnxruntime_providers_cuda.so",
        vendor="nvidia",
        device="cuda",
        options={
            "gpu_mem_limit": BYTES,
            "arena_extend_strategy": _ARENA,
            "use_tf32": bool,
            "prefer_nhwc": bool,
            "fuse_conv_bias": bool,
            "sdpa_kernel": COUNT,
            "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
            "cudnn_conv_use_max_workspace": bool,
            "cudnn_conv1d_pad_to_nc1d": bool,
            "enable_skip_layer_norm_strict_mode": bool,
            "tunable_op_enable": bool,
            "tunable_op_tuning_enable": bool,
            "tunable_op_max_tuning_duration_ms": COUNT,
        },
        shared=_SHARED,
        runs_custom_ops=True,
        backend="cuda",
        extra="cuda",
        stack="CUDA and cuDNN",
        capture_option="enable_cuda_graph",
    ),
    Provider(
        name="cpu",
        ort_name="CPUExecutionProvider",
        library=None,
        vendor=None,
        device="cpu",
        options={},
        shared={},
        runs_custom_ops=True,
        backend="cpu",
        extra="cpu",
    ),
)

PROVIDERS: Mapping[str, Provider] = MappingProxyType({row.name: row for row in _ROWS})
"""The table, by short name, in the order in which a session prefers them."""

CPU = PROVIDERS["cpu"]


def resolve(names: Iterable[str] | str | None, built_in: Iterable[str]) -> tuple[Provider, ...]:
    """Returns the providers that a caller asked for, in order.

    Args:
        names: short or ONNX Runtime's names, or one of them; None for the default: ROCm first and CPU second, or the
            GPU providers that this onnxruntime was built with, where ROCm is not among them, and then CPU.
        built_in: ONNX Runtime's names of the providers this onnxruntime was built with.

    Raises:
        ProviderError: a name is unknown or given twice, or there is none.
    """
    if names is None:
        built_in = set(built_in)
        gpus = tuple(row for row in _ROWS if row is not CPU and row.ort_name in built_in)
        rocm = PROVIDERS["rocm"]
        return (rocm, CPU) if rocm in gpus or not gpus else (*gpus, CPU)
    chosen: list[Provider] = []
    for name in (names,) if isinstance(names, str) else names:
        provider = next((row for row in _ROWS if name in (row.name, row.ort_name)), None)
        if provider is None:
            raise ProviderError(f"provider {name!r}: unknown, expected one of {', '.join(PROVIDERS)}")
        if provider in chosen:
            raise ProviderError(f"provider {name!r}: given twice")
        chosen.append(provider)
    if not chosen:
        raise ProviderError(f"no provider given, expected one or more of {', '.join(PROVIDERS)}")
    return tuple(chosen)
