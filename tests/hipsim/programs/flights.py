"""What the host may do with pinned memory while work on it is queued. Run with HIPSIM_PROTECT=1."""

import ctypes
import time

from device import (
    D2H,
    H2D,
    SIZE,
    attempt,
    call,
    case,
    copy,
    event,
    fill,
    main,
    malloc,
    pinned,
    record,
    stream,
    synchronize,
)

PAGE = 4096


def read(pointer: int) -> int:
    return ctypes.string_at(pointer, 1)[0]


def write(pointer: int, value: int) -> None:
    ctypes.memset(pointer, value, 1)


def busy() -> int:
    """A stream that has work for a while, in threaded mode."""
    s = stream()
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: time.sleep(0.2))
    busy.functions.append(function)
    call("hipLaunchHostFunc", s, function, 0)
    return s


busy.functions = []


@case
def source_overwritten():
    s, a, h = busy(), malloc(), pinned()
    copy(a, h, s, H2D)
    write(h, 5)
    return read(h)


@case
def source_read():
    s, a, h = busy(), malloc(), pinned()
    write(h, 5)
    copy(a, h, s, H2D)
    return read(h)


@case
def target_read_too_early():
    s, a, h = busy(), malloc(), pinned()
    fill(a, 1, s)
    copy(h, a, s, D2H)
    read(h + SIZE - 1)


@case
def target_read_after_the_event():
    s, a, h, e = busy(), malloc(), pinned(), event()
    fill(a, 1, s)
    copy(h, a, s, D2H)
    record(e, s)
    call("hipEventSynchronize", e)
    return read(h)


@case
def target_read_after_an_earlier_event():
    s, a, h, e = stream(), malloc(), pinned(), event()
    fill(a, 1, s)
    record(e, s)
    t = busy()
    call("hipStreamWaitEvent", t, e, 0)
    copy(h, a, t, D2H)
    call("hipEventSynchronize", e)
    read(h)


@case
def target_read_once_it_is_done():
    s, a, h, e = busy(), malloc(), pinned(), event()
    fill(a, 1, s)
    copy(h, a, s, D2H)
    record(e, s)
    while attempt("hipEventQuery", e):
        pass
    return read(h)


@case
def other_memory_on_the_same_page():
    s, a, h = busy(), malloc(), pinned(2 * SIZE)
    copy(a, h, s, H2D)
    write(h + SIZE, 7)
    return read(h + SIZE)


@case
def two_copies_of_which_one_is_done():
    s, a, h, e = busy(), malloc(), pinned(), event()
    copy(a, h, s, H2D)
    record(e, s)
    t = busy()
    call("hipStreamWaitEvent", t, e, 0)
    copy(a, h, t, H2D)
    call("hipEventSynchronize", e)
    write(h, 1)


@case
def a_large_target():
    s, a, h = busy(), malloc(8 * PAGE), pinned(8 * PAGE)
    fill(a, 1, s, 8 * PAGE)
    copy(h, a, s, D2H, 8 * PAGE)
    synchronize(s)
    return ctypes.string_at(h, 8 * PAGE).count(1)


if __name__ == "__main__":
    main()
