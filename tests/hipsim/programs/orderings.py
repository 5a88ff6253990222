"""Orders in which two streams and the host may touch the same memory."""

import threading
from ctypes import byref, c_void_p, create_string_buffer

from device import (
    D2D,
    D2H,
    H2D,
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
    wait,
)


@case
def one_stream():
    s, a, b = stream(), malloc(), malloc()
    fill(a, 1, s)
    copy(b, a, s)
    fill(a, 2, s)


@case
def read_after_write():
    s, t, a, b = stream(), stream(), malloc(), malloc()
    fill(a, 1, s)
    copy(b, a, t)


@case
def write_after_read():
    s, t, a, b = stream(), stream(), malloc(), malloc()
    fill(a, 1, s)
    synchronize()
    copy(b, a, s)
    fill(a, 2, t)


@case
def write_after_write():
    s, t, a = stream(), stream(), malloc()
    fill(a, 1, s)
    fill(a, 2, t)


@case
def read_after_read():
    s, t, a, b, c = stream(), stream(), malloc(), malloc(), malloc()
    fill(a, 1, s)
    synchronize()
    copy(b, a, s)
    copy(c, a, t)


@case
def halves_of_one_allocation():
    s, t, a = stream(), stream(), malloc()
    fill(a, 1, s, SIZE // 2)
    fill(a + SIZE // 2, 2, t, SIZE // 2)


@case
def one_byte_in_common():
    s, t, a = stream(), stream(), malloc()
    fill(a, 1, s, SIZE // 2 + 1)
    fill(a + SIZE // 2, 2, t, SIZE // 2)


@case
def event_between():
    s, t, a, b, e = stream(), stream(), malloc(), malloc(), event()
    fill(a, 1, s)
    record(e, s)
    wait(t, e)
    copy(b, a, t)
    return first_byte(b)


@case
def event_recorded_too_early():
    s, t, a, b, e = stream(), stream(), malloc(), malloc(), event()
    record(e, s)
    fill(a, 1, s)
    wait(t, e)
    copy(b, a, t)


@case
def event_waited_for_too_late():
    s, t, a, b, e = stream(), stream(), malloc(), malloc(), event()
    fill(a, 1, s)
    record(e, s)
    copy(b, a, t)
    wait(t, e)


@case
def event_never_recorded():
    s, t, a, b, e = stream(), stream(), malloc(), malloc(), event()
    fill(a, 1, s)
    wait(t, e)
    copy(b, a, t)


@case
def event_of_the_record_before():
    """A wait takes the event as it stands; a later record does not reach it."""
    s, t, a, b, e = stream(), stream(), malloc(), malloc(), event()
    record(e, s)
    wait(t, e)
    fill(a, 1, s)
    record(e, s)
    copy(b, a, t)


@case
def event_forgotten_after_the_wait():
    s, t, a, b, e = stream(), stream(), malloc(), malloc(), event()
    fill(a, 1, s)
    record(e, s)
    wait(t, e)
    drop(e)
    copy(b, a, t)
    return first_byte(b)


@case
def over_a_third_stream():
    s, t, u, a, b, e, f = stream(), stream(), stream(), malloc(), malloc(), event(), event()
    fill(a, 1, s)
    record(e, s)
    wait(t, e)
    record(f, t)
    wait(u, f)
    copy(b, a, u)
    return first_byte(b)


@case
def over_the_wrong_stream():
    s, t, u, a, b, e = stream(), stream(), stream(), malloc(), malloc(), event()
    fill(a, 1, s)
    record(e, u)
    wait(t, e)
    copy(b, a, t)


@case
def host_waits_for_the_stream():
    s, t, a, b = stream(), stream(), malloc(), malloc()
    fill(a, 1, s)
    synchronize(s)
    copy(b, a, t)
    return first_byte(b)


@case
def host_waits_for_another_stream():
    s, t, u, a, b = stream(), stream(), stream(), malloc(), malloc()
    fill(a, 1, s)
    synchronize(u)
    copy(b, a, t)


@case
def host_waits_for_the_event():
    s, t, a, b, e = stream(), stream(), malloc(), malloc(), event()
    fill(a, 1, s)
    record(e, s)
    call("hipEventSynchronize", e)
    copy(b, a, t)
    return first_byte(b)


@case
def host_asks_until_the_event_is_done():
    s, t, a, b, e = stream(), stream(), malloc(), malloc(), event()
    fill(a, 1, s)
    record(e, s)
    while attempt("hipEventQuery", e):
        pass
    copy(b, a, t)
    return first_byte(b)


@case
def host_asks_until_the_stream_is_done():
    s, t, a, b = stream(), stream(), malloc(), malloc()
    fill(a, 1, s)
    while attempt("hipStreamQuery", s):
        pass
    copy(b, a, t)
    return first_byte(b)


@case
def host_waits_in_another_thread():
    s, t, a, b = stream(), stream(), malloc(), malloc()

    def produce():
        fill(a, 1, s)
        synchronize(s)

    thread = threading.Thread(target=produce)
    thread.start()
    thread.join()
    copy(b, a, t)
    return first_byte(b)


@case
def destroying_a_stream_waits_for_nothing():
    s, t, a, b = stream(), stream(), malloc(), malloc()
    fill(a, 1, s)
    drop(s)
    copy(b, a, t)


@case
def freeing_waits_for_the_device():
    s, t, a, b, c = stream(), stream(), malloc(), malloc(), malloc()
    fill(a, 1, s)
    drop(c)
    copy(b, a, t)
    return first_byte(b)


@case
def null_stream_before_a_blocking_one():
    s, a, b = stream(0), malloc(), malloc()
    fill(a, 1, 0)
    copy(b, a, s)
    return first_byte(b)


@case
def null_stream_after_a_blocking_one():
    s, a, b = stream(0), malloc(), malloc()
    fill(a, 1, s)
    copy(b, a, 0)
    return first_byte(b)


@case
def null_stream_before_a_non_blocking_one():
    s, a, b = stream(), malloc(), malloc()
    fill(a, 1, 0)
    copy(b, a, s)


@case
def null_stream_after_a_non_blocking_one():
    s, a, b = stream(), malloc(), malloc()
    fill(a, 1, s)
    copy(b, a, 0)


@case
def blocking_streams_are_not_ordered():
    s, t, a, b = stream(0), stream(0), malloc(), malloc()
    fill(a, 1, s)
    copy(b, a, t)


@case
def blocking_streams_around_the_null_stream():
    s, t, a, b, c = stream(0), stream(0), malloc(), malloc(), malloc()
    fill(a, 1, s)
    fill(c, 1, 0)
    copy(b, a, t)
    return first_byte(b)


@case
def host_waits_for_the_null_stream():
    """Which waits for the blocking streams first."""
    s, t, a, b = stream(0), stream(), malloc(), malloc()
    fill(a, 1, s)
    synchronize(0)
    copy(b, a, t)
    return first_byte(b)


@case
def copy_from_pageable_memory_does_not_wait():
    s, t, a, b = stream(), stream(), malloc(), malloc()
    copy(a, create_string_buffer(SIZE), s, H2D)
    copy(b, a, t)


@case
def pageable_memory_may_be_reused_at_once():
    """An asynchronous copy has taken the bytes by the time it returns."""
    s, a, host = stream(), malloc(), create_string_buffer(b"\1" * SIZE, SIZE)
    copy(a, host, s, H2D)
    host[0] = 2
    return first_byte(a)


@case
def synchronous_copy_from_pageable_memory_waits():
    s, a, b = stream(), malloc(), malloc()
    call("hipMemcpy", a, create_string_buffer(b"\1" * SIZE, SIZE), SIZE, H2D)
    copy(b, a, s)
    return first_byte(b)


@case
def copy_to_pageable_memory_waits():
    s, t, a, b = stream(), stream(), malloc(), malloc()
    fill(a, 1, s)
    copy(create_string_buffer(SIZE), a, s, D2H)
    copy(b, a, t)
    return first_byte(b)


@case
def copy_of_pinned_memory_does_not_wait():
    s, t, a, b, h = stream(), stream(), malloc(), malloc(), pinned()
    copy(a, h, s, H2D)
    copy(b, a, t)


@case
def synchronous_copy_on_the_device_does_not_wait():
    """hipMemcpy between two places on the device returns at once."""
    s, a, b, c = stream(), malloc(), malloc(), malloc()
    call("hipMemcpy", b, a, SIZE, D2D)
    copy(c, b, s)


@case
def pinned_memory_reused_too_early():
    s, t, a, b, h = stream(), stream(), malloc(), malloc(), pinned()
    copy(a, h, s, H2D)
    copy(h, b, t, D2H)


@case
def stream_of_the_thread_and_the_null_stream():
    """hipStreamPerThread is a blocking stream."""
    per_thread, a, b = 2, malloc(), malloc()
    fill(a, 1, per_thread)
    copy(b, a, 0)
    return first_byte(b)


@case
def streams_of_two_threads():
    per_thread, a, b = 2, malloc(), malloc()
    thread = threading.Thread(target=fill, args=(a, 1, per_thread))
    thread.start()
    thread.join()
    copy(b, a, per_thread)


def malloc_async(on: int, size: int = SIZE) -> int:
    pointer = c_void_p()
    call("hipMallocAsync", byref(pointer), size, on)
    return pointer.value or 0


@case
def memory_made_in_stream_order():
    s, b = stream(), malloc()
    a = malloc_async(s)
    fill(a, 1, s)
    copy(b, a, s)
    call("hipFreeAsync", a, s)
    return first_byte(b)


@case
def memory_used_before_its_stream_made_it():
    s, t = stream(), stream()
    a = malloc_async(s)
    fill(a, 1, t)
    synchronize()
    call("hipFree", a)


@case
def memory_freed_while_another_stream_reads():
    """So much that in threaded mode it is freed in the middle of the copy."""
    size = 64 << 20
    s, t, b = stream(), stream(), malloc(size)
    a = malloc_async(s, size)
    synchronize()
    copy(b, a, t, size=size)
    call("hipFreeAsync", a, s)


if __name__ == "__main__":
    main()
