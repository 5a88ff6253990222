"""rocline: Hugging Face models as fast ONNX models on AMD GPUs, with the same answers on a CPU.

Public names load on first use (PEP 562), so that ``import rocline`` costs milliseconds.
"""

from importlib import import_module
from typing import Any

from rocline.errors import (
    DeviceError,
    DeviceMemoryError,
    ExportError,
    InputError,
    ModelError,
    ParityError,
    ProviderError,
    RoclineError,
)

_LAZY = {
    "Embedder": "rocline.runtime.embedder",
    "Generator": "rocline.runtime.generator",
    "Session": "rocline.runtime.session",
}
_SUBPACKAGES = ("custom_ops", "export", "runtime")

__all__ = [
    "DeviceError",
    "DeviceMemoryError",
    "Embedder",
    "ExportError",
    "Generator",
    "InputError",
    "ModelError",
    "ParityError",
    "ProviderError",
    "RoclineError",
    "Session",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
    elif name in _SUBPACKAGES:
        value = import_module(f"rocline.{name}")
    elif name == "__version__":
        from importlib.metadata import version

        value = version("rocline")
    else:
        raise AttributeError(f"module 'rocline' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
