"""One mistake, named on the command line, which ends the process or is found at its end."""

import ctypes
import os
import subprocess
import sys
import threading
import time

from device import D2H, SIZE, attempt, call, copy, event, fill, make, malloc, pinned, record, stream, synchronize, wait


def nothing() -> None:
    s, a = stream(), malloc()
    fill(a, 1, s)
    synchronize(s)
    call("hipStreamDestroy", s)
    call("hipFree", a)


def exits_with_3() -> None:
    stream()
    raise SystemExit(3)


def killed() -> None:
    os.kill(os.getpid(), 9)


def leaves_everything() -> None:
    s = stream()
    a = malloc()
    pinned()
    event()
    call("hipStreamBeginCapture", s, 0)
    fill(a, 1, s)
    graph = ctypes.c_void_p()
    call("hipStreamEndCapture", s, ctypes.byref(graph))
    make("hipGraphInstantiate", graph, None, None, 0, free="hipGraphExecDestroy")
    handle = ctypes.c_void_p()
    ctypes.CDLL("libhipblas.so.3").hipblasCreate(ctypes.byref(handle))


def leaves_work_that_races() -> None:
    """Nobody waits for it: found all the same."""
    s, t, a = stream(), stream(), malloc()
    fill(a, 1, s)
    fill(a, 2, t)


def leaves_a_function() -> None:
    """Which must not run while Python is gone."""
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
    call("hipLaunchHostFunc", stream(), function, 0)


def reads_device_memory() -> None:
    ctypes.string_at(malloc() + 16, 1)


def reads_device_memory_after_work() -> None:
    s, a = stream(), malloc()
    fill(a, 1, s)
    synchronize(s)
    ctypes.string_at(a + 16, 1)


def reads_freed_pinned_memory() -> None:
    h = pinned()
    call("hipHostFree", h)
    ctypes.string_at(h, 1)


def reads_beyond_pinned_memory() -> None:
    ctypes.string_at(pinned(4096) + 4096, 1)


def waits_for_ever() -> None:
    running = threading.Event()
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: (running.set(), time.sleep(1000)))
    s = stream()
    call("hipLaunchHostFunc", s, function, 0)
    if os.environ["HIPSIM_MODE"] == "threaded":
        running.wait()
    synchronize(s)


def calls_what_is_not_simulated() -> None:
    print(ctypes.CDLL("libMIOpen.so.1").miopenLRNForward())


def races_in_a_child() -> None:
    raise SystemExit(subprocess.run([sys.executable, __file__, "leaves_work_that_races"], check=False).returncode)


def forks() -> None:
    """The child owns nothing of its parent's."""
    s = stream()
    child = os.fork()
    if not child:
        sys.exit(0)
    os.waitpid(child, 0)
    call("hipStreamDestroy", s)


def fails_where_it_is_told() -> None:
    statuses = [
        attempt("hipMemGetInfo", ctypes.byref(ctypes.c_size_t()), ctypes.byref(ctypes.c_size_t())) for _ in "1234"
    ]
    statuses.append(attempt("hipPeekAtLastError"))
    blas = ctypes.CDLL("libhipblas.so.3")
    handle = ctypes.c_void_p()
    statuses.append(blas.hipblasCreate(ctypes.byref(handle)))
    print(statuses)


def is_logged() -> None:
    s, t, a, b, e = stream(), stream(0), malloc(), malloc(), event()
    h = pinned()
    attempt("hipsim_mark", b"begin")
    fill(a, 1, s)
    record(e, s)
    wait(t, e)
    copy(b, a, t)
    copy(h, b, t, D2H, SIZE // 2)
    synchronize(t)
    attempt("hipsim_mark", b"end")
    synchronize()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
