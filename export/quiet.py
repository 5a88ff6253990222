"""Keeps libraries' noise from the user: warnings, log lines and progress bars, silenced at the call that makes them."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

_NOISY = ("transformers", "optimum", "torch", "huggingface_hub", "accelerate", "gguf", "onnxscript", "datasets")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the warnings, log lines and progress bars of transformers, Optimum and torch inside the block."""
    import torch
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    # torch's exporter switches its own log on for good, and prints the whole graph to stdout when it fails.
    switch: Any = getattr(torch._C, "_jit_set_onnx_log_enabled", None)
    try:
        torch._C._jit_set_onnx_log_enabled = lambda enabled: None
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        transformers_logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._C._jit_set_onnx_log_enabled = switch
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


def one_line(error: BaseException) -> str:
    """Returns the first line of an exception's text, its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
