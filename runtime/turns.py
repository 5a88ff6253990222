"""Who may use a device when: one thread at a time in a session, and nobody else while a graph is captured.

A session queues on one stream and has one BLAS handle, so its runs take turns, and binding and closing with them.
Allocations, which ONNX Runtime's arenas make during runs and while a session is created, would break another thread's
graph capture: a capture therefore takes the turns of all sessions, and the lock under which `rocline.runtime.devices`
allocates.
"""

import gc
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from rocline.runtime.devices.driver import Driver

# Seconds to wait for one lock while others are held; then all are given back.
_PATIENCE = 0.5

_registry = threading.RLock()
_turns: "weakref.WeakSet[threading.RLock]" = weakref.WeakSet()


def new_turn() -> "threading.RLock":
    """Returns the right to work with a new session; waits for the end of a capture that is under way.

    It is Python's own lock and no class around one, in whose ``__enter__`` Ctrl-C could come between taking the lock
    and the block that gives it back.
    """
    turn = threading.RLock()
    with _registry:
        _turns.add(turn)
    return turn


@contextmanager
def alone(driver: Driver) -> Iterator[None]:
    """Keeps every session, and every allocation by ``driver``, waiting while the block runs.

    The caller must hold no turn.
    """
    late: threading.RLock | None = None
    while True:
        with ExitStack() as stack:
            # With nothing held, since who holds one may be waiting for another: to close a session in the midst of
            # another's run, say, as the collector does.
            if late is not None:
                stack.enter_context(late)
            # First of the rest, so that one capture leaves the collector off until the next has turned it off.
            late = _missing(stack, [_registry])
            if late is not None:
                continue
            # A session that the collector finds would be closed in this very thread, in the midst of the block.
            if gc.isenabled():
                gc.disable()
                stack.callback(gc.enable)
            late = _missing(stack, [*sorted(_turns, key=id), driver.lock])
            if late is None:
                yield
                return


def _missing(stack: ExitStack, locks: "Iterable[threading.RLock]") -> "threading.RLock | None":
    """Takes locks, which ``stack`` gives back, and returns the first that does not come; None if all did."""
    for lock in locks:
        if not lock.acquire(timeout=_PATIENCE):
            return lock
        stack.callback(lock.release)
    return None


def _forked() -> None:
    """In a forked process the other threads, which may have had the locks, do not exist."""
    locks: list[Any] = [_registry, *_turns]
    for lock in locks:
        if not lock._is_owned():
            lock._at_fork_reinit()


os.register_at_fork(after_in_child=_forked)
