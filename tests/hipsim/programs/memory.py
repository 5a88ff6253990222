"""Mistakes with memory and handles."""

import ctypes

from device import (
    D2D,
    D2H,
    SIZE,
    attempt,
    call,
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
    take_findings,
)


@case
def new_memory_holds_no_numbers():
    a = malloc()
    values = (ctypes.c_float * (SIZE // 4))()
    call("hipMemcpy", values, a, SIZE, D2H)
    return [value != value for value in values].count(True)


@case
def copy_beyond_the_end():
    s, a, b = stream(), malloc(), malloc(2 * SIZE)
    return attempt("hipMemcpyAsync", a, b, SIZE + 1, D2D, s)


@case
def fill_beyond_the_end():
    s, a = stream(), malloc()
    return attempt("hipMemsetAsync", a + 8, 0, SIZE, s)


@case
def copy_from_freed_memory():
    s, a, b = stream(), malloc(), malloc()
    drop(a)
    return attempt("hipMemcpyAsync", b, a, SIZE, D2D, s)


@case
def freed_twice():
    a = malloc()
    drop(a)
    return attempt("hipFree", a)


@case
def freed_by_the_wrong_function():
    h = pinned()
    return attempt("hipFree", h)


@case
def free_of_nothing():
    return attempt("hipFree", 0)


@case
def pageable_memory_called_device_memory():
    s, a = stream(), malloc()
    return attempt("hipMemcpyAsync", a, ctypes.create_string_buffer(SIZE), SIZE, D2D, s)


@case
def more_than_there_is():
    pointer = ctypes.c_void_p(1)
    status = attempt("hipMalloc", ctypes.byref(pointer), 1 << 50)
    return [status, pointer.value, attempt("hipGetLastError"), attempt("hipGetLastError")]


@case
def what_is_free():
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    call("hipMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    before = free.value
    a = malloc(1 << 20)
    call("hipMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    taken = before - free.value
    drop(a)
    call("hipMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    return [taken, before - free.value]


@case
def kinds_of_pointers():
    class Attributes(ctypes.Structure):
        _fields_ = (
            ("type", ctypes.c_int),
            ("device", ctypes.c_int),
            ("device_pointer", ctypes.c_void_p),
            ("host_pointer", ctypes.c_void_p),
            ("managed", ctypes.c_int),
            ("flags", ctypes.c_uint),
        )

    types = []
    registered = ctypes.create_string_buffer(SIZE)
    call("hipHostRegister", registered, SIZE, 0)
    for pointer in (malloc() + 8, pinned(), registered, ctypes.create_string_buffer(SIZE)):
        attributes = Attributes()
        call("hipPointerGetAttributes", ctypes.byref(attributes), pointer)
        types.append(attributes.type)
    call("hipHostUnregister", registered)
    return types


@case
def stream_used_after_it_was_destroyed():
    s, a = stream(), malloc()
    drop(s)
    return [attempt("hipMemsetAsync", a, 0, SIZE, s), attempt("hipStreamSynchronize", s)]


@case
def event_used_after_it_was_destroyed():
    s, e = stream(), event()
    drop(e)
    return attempt("hipEventRecord", e, s)


@case
def stream_that_never_was():
    return attempt("hipStreamSynchronize", 0x1234500)


@case
def event_for_a_stream():
    return attempt("hipStreamSynchronize", event())


@case
def time_between_events():
    s, a, first, second = stream(), malloc(), event(0), event(0)
    elapsed = ctypes.c_float(-1)
    record(first, s)
    fill(a, 0, s)
    record(second, s)
    unfinished = attempt("hipEventElapsedTime", ctypes.byref(elapsed), first, second)
    synchronize(s)
    call("hipEventElapsedTime", ctypes.byref(elapsed), first, second)
    return [unfinished, elapsed.value >= 0]


@case
def time_between_events_that_keep_none():
    s, first, second = stream(), event(), event()
    record(first, s)
    record(second, s)
    synchronize(s)
    return attempt("hipEventElapsedTime", ctypes.byref(ctypes.c_float()), first, second)


@case
def event_that_was_never_recorded_is_done():
    e = event()
    return [attempt("hipEventQuery", e), attempt("hipEventSynchronize", e)]


@case
def work_that_was_not_waited_for():
    """In lazy mode it has not run; a query lets one operation run."""
    s, a, e = stream(), malloc(), event()
    h = pinned()
    ctypes.memset(h, 7, SIZE)
    fill(a, 1, s)
    copy(h, a, s, D2H)
    record(e, s)
    seen = ctypes.string_at(h, 1)[0]
    asked = 1
    while attempt("hipEventQuery", e):
        asked += 1
    return [seen, asked, ctypes.string_at(h, 1)[0]]


@case
def function_of_the_program_runs_in_order():
    s, a = stream(), malloc()
    seen = []
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda argument: seen.append(argument))
    fill(a, 1, s)
    call("hipLaunchHostFunc", s, function, 5)
    call("hipLaunchHostFunc", s, function, 6)
    synchronize(s)
    return seen


@case
def function_of_the_program_calls_hip():
    s = stream()
    statuses = []
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: statuses.append(attempt("hipDeviceSynchronize")))
    call("hipLaunchHostFunc", s, function, 0)
    synchronize(s)
    return statuses


@case
def rows_of_a_matrix():
    s, a, b = stream(), malloc(), malloc()
    fill(a, 1, s)
    fill(b, 2, s)
    call("hipMemcpy2DAsync", b, 64, a, 32, 16, 4, D2D, s)
    synchronize(s)
    out = ctypes.create_string_buffer(SIZE)
    call("hipMemcpy", out, b, SIZE, D2H)
    return out.raw.count(1)


@case
def words_of_a_fill():
    s, a = stream(), malloc()
    call("hipMemsetD32Async", a, 0x01020304, SIZE // 4, s)
    return first_byte(a)


@case
def findings_that_were_taken_are_gone():
    stream_used_after_it_was_destroyed()
    return [len(take_findings()), len(take_findings())]


@case
def what_was_taken_is_found_again():
    s, t, a = stream(), stream(), malloc()
    found = []
    for _ in "12":
        fill(a, 1, s)
        fill(a, 2, t)
        synchronize()
        found.append(len(take_findings()))
    return found


if __name__ == "__main__":
    main()
