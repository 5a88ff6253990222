"""Two threads that change places at a chosen line: what may happen in one run of thousands happens in each.

Locks of the runtime hand over where they would wait, so nothing here depends on time.
"""

import sys
import threading
import weakref
from functools import cached_property
from pathlib import Path

import onnxruntime.capi.onnxruntime_inference_collection as onnxruntime_python

from rocline.runtime import devices, session, startup, turns

_TRACED = (str(Path(session.__file__).parent), onnxruntime_python.__file__)
_HANG = 30


class Switch:
    """Runs ``first`` for some lines, then ``second`` until it ends or waits for a lock, then whoever can go on.

    Attributes:
        came_between: whether ``first`` was that long.
        outcomes: what each returned, or the exception.
    """

    now = None

    def __init__(self, first, second, after):
        self.came_between, self.outcomes = False, [None, None]
        self._lines = 0
        self._after, self._ended, self._waits = after, [False, False], [False, False]
        self._gates = [threading.Semaphore(0), threading.Semaphore(0)]
        threads = [threading.Thread(target=self._run, args=pair, daemon=True) for pair in enumerate((first, second))]
        self._numbers = {}
        Switch.now = self
        try:
            for number, thread in enumerate(threads):
                thread.start()
                self._numbers[thread.ident] = number
            self._gates[0].release()
            for thread in threads:
                thread.join(_HANG)
                assert not thread.is_alive(), f"a thread hangs after {after} lines"
        finally:
            Switch.now = None

    def number(self):
        """Which of the two calls; None for any other thread."""
        return self._numbers.get(threading.get_ident())

    def wait(self, number):
        """Lets the other thread go on, since this one needs a lock that it has."""
        self._waits[number] = True
        if all(self._waits) or self._ended[1 - number]:
            raise AssertionError(f"a deadlock after {self._after} lines")
        self._hand_over(number)

    def released(self):
        """A lock was given back."""
        self._waits = [False, False]

    def _run(self, number, action):
        self._gates[number].acquire()
        sys.settrace(self._traced if number == 0 else None)
        try:
            self.outcomes[number] = action()
        except BaseException as error:
            self.outcomes[number] = error
        finally:
            sys.settrace(None)
            self._ended[number] = True
            self._gates[1 - number].release()

    def _traced(self, frame, event, argument):
        return self._line if frame.f_code.co_filename.startswith(_TRACED) else None

    def _line(self, frame, event, argument):
        if event == "line":
            self._lines += 1
            if self._lines == self._after:
                self.came_between = True
                self._hand_over(0)
        return self._line

    def _hand_over(self, number):
        if self._ended[1 - number]:
            return
        self._gates[1 - number].release()
        self._gates[number].acquire()


class _Lock:
    def __init__(self, lock):
        self._lock = lock

    def acquire(self, blocking=True, timeout=-1):
        while not self._lock.acquire(blocking=False):
            if not blocking:
                return False
            number = Switch.now.number() if Switch.now else None
            if number is None:
                return self._lock.acquire(timeout=timeout)
            Switch.now.wait(number)
        return True

    def release(self):
        self._lock.release()
        if Switch.now:
            Switch.now.released()

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *error):
        self.release()


def use_locks(monkeypatch, *modules):
    """Lets the runtime's locks hand over, those of ``modules`` too; what is made from now on has such locks."""

    class Threading:
        RLock = staticmethod(lambda: _Lock(threading.RLock()))

    for module in (turns, *modules):
        monkeypatch.setattr(module, "threading", Threading)
    # Those of other tests stay as they are, and what is left of these is out of their way.
    monkeypatch.setattr(turns, "_turns", weakref.WeakSet())
    monkeypatch.setattr(turns, "_registry", _Lock(threading.Lock()))
    monkeypatch.setattr(startup, "_sharing", _Lock(threading.RLock()))
    monkeypatch.setattr(devices.driver("cpu"), "lock", _Lock(threading.RLock()))
    made_once = vars(session.Session)["_bindable"]
    if isinstance(made_once, cached_property) and hasattr(made_once, "lock"):
        monkeypatch.setattr(made_once, "lock", _Lock(threading.RLock()))


def interleaved(make, first, second, *, step=1):
    """Yields the two outcomes, and what ``make`` gave them, for each line of ``first`` at which ``second`` may come.

    Of a long ``first`` only every ``step``-th line is tried.
    """
    after = 1
    while True:
        world = make()
        switch = Switch(lambda world=world: first(world), lambda world=world: second(world), after)
        yield world, *switch.outcomes
        if not switch.came_between:
            return
        after += step
