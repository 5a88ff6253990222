"""The execution providers rocline knows: one row each, and nothing about a provider stands anywhere else."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from rocline.errors import ProviderError

OptionType = type[bool] | type[int] | type[str] | tuple[str, ...]
"""What an option takes: true or false, a whole number, text, or one of the names listed."""


@dataclass(frozen=True)
class Provider:
    """One execution provider.

    Attributes:
        name: short name, as the command line takes it.
        ort_name: ONNX Runtime's name.
        library: file name of the provider library beside onnxruntime's own; None if it is built in.
        vendor: whose GPU it needs, a key of `rocline.runtime.probe.DEVICES`; None for the CPU.
        device: ONNX Runtime's device string for its memory.
        options: what each of its options takes; ``device_id`` is the session's own argument.
        runs_custom_ops: whether it runs custom-operator kernels; else such a node runs on the CPU.
        takes_user_stream: whether work can be put on a stream of the caller's.
        extra: the extra of rocline that installs an onnxruntime with it.
        stack: the software that brings the libraries it needs.
    """

    name: str
    ort_name: str
    library: str | None
    vendor: str | None
    device: str
    options: Mapping[str, OptionType]
    runs_custom_ops: bool
    takes_user_stream: bool
    extra: str
    stack: str = field(default="")


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
            "gpu_mem_limit": int,
            "arena_extend_strategy": _ARENA,
            "do_copy_in_default_stream": bool,
            "has_user_compute_stream": bool,
            "user_compute_stream": int,
            "enable_hip_graph": bool,
            "tunable_op_enable": bool,
            "tunable_op_tuning_enable": bool,
            "tunable_op_max_tuning_duration_ms": int,
            "miopen_conv_exhaustive_search": bool,
            "miopen_conv_use_max_workspace": bool,
            "gpu_external_alloc": int,
            "gpu_external_free": int,
            "gpu_external_empty_cache": int,
        },
        runs_custom_ops=True,
        takes_user_stream=True,
        extra="rocm",
        stack="ROCm",
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
            "migraphx_mem_limit": int,
            "migraphx_arena_extend_strategy": _ARENA,
        },
        runs_custom_ops=False,
        takes_user_stream=False,
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
            "gpu_mem_limit": int,
            "arena_extend_strategy": _ARENA,
            "do_copy_in_default_stream": bool,
            "has_user_compute_stream": bool,
            "user_compute_stream": int,
            "use_ep_level_unified_stream": bool,
            "enable_cuda_graph": bool,
            "use_tf32": bool,
            "prefer_nhwc": bool,
            "fuse_conv_bias": bool,
            "sdpa_kernel": int,
            "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
            "cudnn_conv_use_max_workspace": bool,
            "cudnn_conv1d_pad_to_nc1d": bool,
            "enable_skip_layer_norm_strict_mode": bool,
            "tunable_op_enable": bool,
            "tunable_op_tuning_enable": bool,
            "tunable_op_max_tuning_duration_ms": int,
            "gpu_external_alloc": int,
            "gpu_external_free": int,
            "gpu_external_empty_cache": int,
        },
        runs_custom_ops=True,
        takes_user_stream=True,
        extra="cuda",
        stack="CUDA and cuDNN",
    ),
    Provider(
        name="cpu",
        ort_name="CPUExecutionProvider",
        library=None,
        vendor=None,
        device="cpu",
        options={},
        runs_custom_ops=True,
        takes_user_stream=False,
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
