"""A forked process leaves the sessions of its parent as they are: none is destroyed, and on a GPU none is used.

The GPU's runtime does not live on there. Its calls, and the destructor of every session of ONNX Runtime, may wait for
ever for threads that the process lacks, or crash: with ONNX Runtime 1.31 that of one on the CPU does.
"""

import ctypes
import os
import weakref
from typing import Any, Protocol


class Leaving(Protocol):
    """Something that a forked process inherits."""

    def leave_to_parent(self) -> None:
        """Called in a forked process at once: refuses uses that cannot be from then on, and destroys nothing."""


REFUSAL = (
    "the session was opened on a GPU before this process was forked, and is of no use in it: start processes by "
    "'spawn', or open sessions in the child only"
)
"""What whoever uses it there is told."""

_open: "weakref.WeakSet[Leaving]" = weakref.WeakSet()


def watch(item: Leaving) -> None:
    """Lets ``item`` know of forks as long as it lives."""
    _open.add(item)


def keep(item: Any) -> None:
    """Keeps ``item`` until the process is gone, whatever Python clears before."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(item))


def _forked() -> None:
    for item in list(_open):
        item.leave_to_parent()


os.register_at_fork(after_in_child=_forked)
