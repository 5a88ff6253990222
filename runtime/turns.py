"""Who may use a device when: one thread at a time in a session, and nobody else while a graph is captured.

A session queues on one stream and has one BLAS handle, so its runs take turns. Allocations, which ONNX Runtime's
arenas make during runs and while a session is created, would break another thread's graph capture: a capture therefore
takes the turns of all sessions, and the lock under which `rocline.runtime.devices` allocates.
"""

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rocline.runtime.devices.driver import Driver

_registry = threading.Lock()
_turns: "weakref.WeakSet[Turn]" = weakref.WeakSet()


class Turn:
    """The right to work with one session; a context manager that one thread at a time gets through.

    Made while a graph is being captured, it waits for that to end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        with _registry:
            _turns.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@contextmanager
def alone(driver: Driver) -> Iterator[None]:
    """Keeps every session, and every allocation by ``driver``, waiting while the block runs.

    The caller must hold no turn.
    """
    with ExitStack() as stack:
        # A session that the collector finds would be closed in this very thread, in the midst of the block.
        if gc.isenabled():
            gc.disable()
            stack.callback(gc.enable)
        stack.enter_context(_registry)
        # Always in the same order, so that two captures cannot wait for each other.
        for turn in sorted(_turns, key=id):
            stack.enter_context(turn)
        stack.enter_context(driver.lock)
        yield
