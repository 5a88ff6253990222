"""A Hugging Face model becomes a folder with ONNX files, tokenizer and manifest, compared with PyTorch on the way.

``export_model`` loads on first use (PEP 562): the package itself imports neither torch nor transformers.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rocline.export.pipeline import export_model

__all__ = ["export_model"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from rocline.export import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'rocline.export' has no attribute {name!r}")
