"""What the host may do with pinned memory before it waits for work that uses it. Run with HIPSIM_PROTECT=1."""

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    first_byte,
    main,
    malloc,
    pinned,
    record,
    stream,
    synchronize,
    wait,
)

PAGE = 4096
HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_kept: list[object] = []


def read(pointer: int) -> int:
    return ctypes.string_at(pointer, 1)[0]


def write(pointer: int, value: int) -> None:
    ctypes.memset(pointer, value, 1)


def run_on(on: int, function: Callable[[int | None], object]) -> None:
    """Queues a function of this program."""
    _kept.append(HOST_FUNCTION(function))
    call("hipLaunchHostFunc", on, _kept[-1], 0)


@contextmanager
def held() -> Iterator[int]:
    """A stream whose work begins when the block ends; in sync mode at once, as ever."""
    s, ended = stream(), threading.Event()
    if os.environ["HIPSIM_MODE"] != "sync":
        run_on(s, lambda _: ended.wait())
    try:
        yield s
    finally:
        ended.set()


@case
def source_overwritten():
    with held() as s:
        a, h = malloc(), pinned()
        copy(a, h, s, H2D)
        write(h, 5)
    return read(h)


@case
def source_read():
    with held() as s:
        a, h = malloc(), pinned()
        write(h, 5)
        copy(a, h, s, H2D)
        return read(h)


@case
def target_read_too_early():
    with held() as s:
        a, h = malloc(), pinned()
        fill(a, 1, s)
        copy(h, a, s, D2H)
        read(h + SIZE - 1)


@case
def target_read_after_the_event():
    with held() as s:
        a, h, e = malloc(), pinned(), event()
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
    with held() as t:
        wait(t, e)
        copy(h, a, t, D2H)
        call("hipEventSynchronize", e)
        read(h)


@case
def target_read_once_it_is_done():
    with held() as s:
        a, h, e = malloc(), pinned(), event()
        fill(a, 1, s)
        copy(h, a, s, D2H)
        record(e, s)
    while attempt("hipEventQuery", e):
        pass
    return read(h)


@case
def other_memory_on_the_same_page():
    with held() as s:
        a, h = malloc(), pinned(2 * SIZE)
        copy(a, h, s, H2D)
        write(h + SIZE, 7)
        return read(h + SIZE)


@case
def two_copies_of_which_one_is_done():
    s, a, h, e = stream(), malloc(), pinned(), event()
    copy(a, h, s, H2D)
    record(e, s)
    with held() as t:
        wait(t, e)
        copy(a, h, t, H2D)
        call("hipEventSynchronize", e)
        write(h, 1)


@case
def a_large_target():
    s, a, h = stream(), malloc(8 * PAGE), pinned(8 * PAGE)
    fill(a, 1, s, 8 * PAGE)
    copy(h, a, s, D2H, 8 * PAGE)
    synchronize(s)
    return ctypes.string_at(h, 8 * PAGE).count(1)


@case
def a_function_fills_what_its_stream_then_copies():
    s, a, h = stream(), malloc(), pinned()
    run_on(s, lambda _: write(h, 5))
    copy(a, h, s, H2D)
    return first_byte(a)


@case
def a_function_reads_what_another_stream_writes():
    t = stream()
    with held() as s:
        a, h = malloc(), pinned()
        fill(a, 1, s)
        copy(h, a, s, D2H)
        run_on(t, lambda _: read(h))
        synchronize(t)


@case
def a_function_reads_what_another_stream_wrote():
    s, t, a, h, e = stream(), stream(), malloc(), pinned(), event()
    seen: list[int] = []
    fill(a, 1, s)
    copy(h, a, s, D2H)
    record(e, s)
    wait(t, e)
    run_on(t, lambda _: seen.append(read(h)))
    synchronize(t)
    return seen[0]


if __name__ == "__main__":
    main()
