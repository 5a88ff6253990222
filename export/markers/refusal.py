"""Why a model is not traced with markers."""

from rocline.errors import ExportError


class Refused(ExportError):
    """The model, or this release of transformers, does something that the markers cannot stand for.

    The message is the reason. The plain export, with the cache that grows, is the way out.
    """
