"""Graphs: capture, what it forbids, and what a launch is ordered with."""

import ctypes
import threading
from ctypes import byref, c_int, c_void_p

from device import (
    D2D,
    H2D,
    SIZE,
    attempt,
    call,
    capturing,
    case,
    copy,
    drop,
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

GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2


def end(on: int) -> int:
    """Ends a capture and returns the status."""
    graph = c_void_p()
    status = attempt("hipStreamEndCapture", on, byref(graph))
    if graph:
        call("hipGraphDestroy", graph)
    return status


def spoiled(by, mode: int = GLOBAL, flags: int = 1, in_thread: bool = False) -> list[int]:
    """The status of a call in the middle of a capture, and of the capture's end."""
    s = stream(flags)
    call("hipStreamBeginCapture", s, mode)
    statuses = []
    if in_thread:
        thread = threading.Thread(target=lambda: statuses.append(by(s)))
        thread.start()
        thread.join()
    else:
        statuses.append(by(s))
    return [*statuses, end(s)]


def allocate(_: int) -> int:
    pointer = c_void_p()
    status = attempt("hipMalloc", byref(pointer), SIZE)
    if pointer:
        call("hipFree", pointer)
    return status


@case
def captured_work_runs_only_when_launched():
    s, a = stream(), malloc()
    fill(a, 1, s)
    with capturing(s) as graph:
        fill(a, 2, s)
    before = first_byte(a)
    call("hipGraphLaunch", graph[0], s)
    return [before, first_byte(a)]


@case
def a_launch_reads_what_is_there_then():
    s, a, b = stream(), malloc(), malloc()
    fill(a, 1, s)
    with capturing(s) as graph:
        copy(b, a, s)
    seen = []
    for value in (5, 6):
        fill(a, value, s)
        call("hipGraphLaunch", graph[0], s)
        seen.append(first_byte(b))
    return seen


@case
def launches_on_another_stream_race():
    s, t, a, b = stream(), stream(), malloc(), malloc()
    with capturing(s) as graph:
        copy(b, a, s)
    fill(a, 1, t)
    call("hipGraphLaunch", graph[0], s)


@case
def launches_of_one_graph_on_two_streams():
    s, t, a = stream(), stream(), malloc()
    with capturing(s) as graph:
        fill(a, 1, s)
    call("hipGraphLaunch", graph[0], s)
    call("hipGraphLaunch", graph[0], t)


@case
def launches_of_one_graph_on_two_streams_with_an_event():
    s, t, a, e = stream(), stream(), malloc(), event()
    with capturing(s) as graph:
        fill(a, 1, s)
    call("hipGraphLaunch", graph[0], s)
    record(e, s)
    wait(t, e)
    call("hipGraphLaunch", graph[0], t)
    return first_byte(a)


@case
def a_forked_capture_is_ordered_within():
    s, t, a, b, forked, joined = stream(), stream(), malloc(), malloc(), event(), event()
    with capturing(s) as graph:
        fill(a, 3, s)
        record(forked, s)
        wait(t, forked)
        copy(b, a, t)
        record(joined, t)
        wait(s, joined)
        fill(a, 4, s)
    call("hipGraphLaunch", graph[0], s)
    call("hipGraphLaunch", graph[0], s)
    return [first_byte(b), first_byte(a)]


@case
def branches_of_a_graph_race():
    s, t, a, b, forked, joined = stream(), stream(), malloc(), malloc(), event(), event()
    with capturing(s) as graph:
        fill(b, 1, s)
        record(forked, s)
        wait(t, forked)
        copy(b, a, t)
        fill(a, 4, s)
        record(joined, t)
        wait(s, joined)
    call("hipGraphLaunch", graph[0], s)


@case
def a_branch_that_never_comes_back():
    s, t, a, forked = stream(), stream(), malloc(), event()
    call("hipStreamBeginCapture", s, GLOBAL)
    record(forked, s)
    wait(t, forked)
    fill(a, 1, t)
    return end(s)


@case
def a_graph_that_uses_freed_memory():
    s, a, b = stream(), malloc(), malloc()
    with capturing(s) as graph:
        copy(b, a, s)
    drop(a)
    call("hipGraphLaunch", graph[0], s)


@case
def allocating_in_a_global_capture():
    return spoiled(allocate)


@case
def allocating_in_a_relaxed_capture():
    return spoiled(allocate, RELAXED)


@case
def another_thread_allocating_in_a_global_capture():
    return spoiled(allocate, GLOBAL, in_thread=True)


@case
def another_thread_allocating_in_a_thread_local_capture():
    return spoiled(allocate, THREAD_LOCAL, in_thread=True)


@case
def waiting_for_the_captured_stream():
    return spoiled(lambda s: attempt("hipStreamSynchronize", s), RELAXED)


@case
def asking_the_captured_stream():
    return spoiled(lambda s: attempt("hipStreamQuery", s), RELAXED)


@case
def waiting_for_the_device():
    return spoiled(lambda _: attempt("hipDeviceSynchronize"))


@case
def a_synchronous_copy():
    a, b = malloc(), malloc()
    return spoiled(lambda _: attempt("hipMemcpy", a, b, SIZE, D2D))


@case
def the_null_stream_while_a_blocking_stream_is_captured():
    a = malloc()
    return spoiled(lambda _: attempt("hipMemsetAsync", a, 0, SIZE, 0), flags=0)


@case
def the_null_stream_while_a_non_blocking_stream_is_captured():
    a = malloc()
    return spoiled(lambda _: attempt("hipMemsetAsync", a, 0, SIZE, 0))


@case
def an_event_from_outside():
    t, e = stream(), event()
    record(e, t)
    return spoiled(lambda s: attempt("hipStreamWaitEvent", s, e, 0))


@case
def an_event_of_the_capture():
    e = event()

    def ask(s: int) -> int:
        record(e, s)
        return attempt("hipEventQuery", e)

    return spoiled(ask)


@case
def an_event_of_a_capture_that_is_over():
    s, a, e = stream(), malloc(), event()
    with capturing(s):
        fill(a, 1, s)
        record(e, s)
    return attempt("hipEventQuery", e)


@case
def a_capture_of_the_null_stream():
    return attempt("hipStreamBeginCapture", 0, GLOBAL)


@case
def a_capture_twice():
    return spoiled(lambda s: attempt("hipStreamBeginCapture", s, GLOBAL))


@case
def an_end_without_a_beginning():
    return end(stream())


@case
def an_end_in_another_thread():
    s = stream()
    call("hipStreamBeginCapture", s, THREAD_LOCAL)
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(end(s)))
    thread.start()
    thread.join()
    return [*statuses, end(s)]


@case
def states_of_a_capture():
    s = stream()
    states = []

    def ask() -> None:
        state = c_int()
        call("hipStreamIsCapturing", s, byref(state))
        states.append(state.value)

    ask()
    call("hipStreamBeginCapture", s, GLOBAL)
    ask()
    allocate(s)
    ask()
    states.append(end(s))
    ask()
    return states


@case
def a_graph_used_after_it_was_destroyed():
    s, a = stream(), malloc()
    with capturing(s) as graph:
        fill(a, 1, s)
    drop(graph[0])
    return attempt("hipGraphLaunch", graph[0], s)


@case
def pinned_memory_is_read_at_each_launch():
    s, a, h = stream(), malloc(), pinned()
    with capturing(s) as graph:
        copy(a, h, s, H2D)
    seen = []
    for value in (1, 2):
        ctypes.memset(h, value, SIZE)
        call("hipGraphLaunch", graph[0], s)
        synchronize(s)
        seen.append(first_byte(a))
    return seen


if __name__ == "__main__":
    main()
