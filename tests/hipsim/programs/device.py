"""The HIP calls that the test programs make, straight through ctypes; and how they tell what the simulator found.

Whole numbers are handles, pointers, sizes and flags alike: each takes one register of the call. What a case makes here
is freed when it is over.
"""

import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_void_p

LIBRARY = ctypes.CDLL("libamdhip64.so.7")

NON_BLOCKING = 1
H2D, D2H, D2D = 1, 2, 3
SIZE = 256

_owned: list[tuple[str, int]] = []
_cases: dict[str, Callable[[], object]] = {}


def case(function: Callable[[], object]) -> Callable[[], object]:
    """Registers a case under its function's name."""
    _cases[function.__name__] = function
    return function


def attempt(function: str, *arguments: object) -> int:
    """Calls a function and returns its status."""
    words = [c_void_p(value) if isinstance(value, int) else value for value in arguments]
    status: int = getattr(LIBRARY, function)(*words)
    return status


def call(function: str, *arguments: object) -> None:
    """Calls a function that must succeed."""
    status = attempt(function, *arguments)
    if status:
        raise RuntimeError(f"{function}: {status}")


def make(function: str, *arguments: object, free: str) -> int:
    """What a function writes to its first argument."""
    handle = c_void_p()
    call(function, byref(handle), *arguments)
    made = handle.value or 0
    _owned.append((free, made))
    return made


def drop(handle: int) -> None:
    """Frees something before the case is over."""
    index = next(i for i, (_, made) in enumerate(_owned) if made == handle)
    call(*_owned.pop(index))


def stream(flags: int = NON_BLOCKING) -> int:
    return make("hipStreamCreateWithFlags", flags, free="hipStreamDestroy")


def event(flags: int = 2) -> int:
    return make("hipEventCreateWithFlags", flags, free="hipEventDestroy")


def malloc(size: int = SIZE) -> int:
    return make("hipMalloc", size, free="hipFree")


def pinned(size: int = SIZE) -> int:
    return make("hipHostMalloc", size, 0, free="hipHostFree")


def copy(to: object, source: object, on: int, kind: int = D2D, size: int = SIZE) -> None:
    call("hipMemcpyAsync", to, source, size, kind, on)


def fill(to: int, value: int, on: int, size: int = SIZE) -> None:
    call("hipMemsetAsync", to, value, size, on)


def record(mark: int, on: int) -> None:
    call("hipEventRecord", mark, on)


def wait(on: int, mark: int) -> None:
    call("hipStreamWaitEvent", on, mark, 0)


def synchronize(on: int | None = None) -> None:
    if on is None:
        call("hipDeviceSynchronize")
    else:
        call("hipStreamSynchronize", on)


def first_byte(pointer: int) -> int:
    """Of device memory, once the device is idle."""
    synchronize()
    buffer = ctypes.create_string_buffer(1)
    call("hipMemcpy", buffer, pointer, 1, D2H)
    return buffer.raw[0]


@contextmanager
def capturing(on: int, mode: int = 0) -> Iterator[list[int]]:
    """Captures a stream; afterwards the list holds the graph, ready to be launched."""
    graph, made = c_void_p(), []
    call("hipStreamBeginCapture", on, mode)
    yield made
    call("hipStreamEndCapture", on, byref(graph))
    made.append(make("hipGraphInstantiate", graph, None, None, 0, free="hipGraphExecDestroy"))
    call("hipGraphDestroy", graph)


def take_findings() -> list[str]:
    """The findings so far, which then do not count at exit."""
    buffer = ctypes.create_string_buffer(1 << 20)
    LIBRARY.hipsim_take_findings(buffer, c_void_p(len(buffer)))
    return [line.removeprefix("hipsim: ") for line in buffer.value.decode().splitlines()]


def main() -> None:
    """Runs the cases and prints, as JSON, what each returned and what was found by the time the device was idle."""
    results = {}
    for name, function in _cases.items():
        returned = function()
        synchronize()
        results[name] = {"findings": take_findings(), "returned": returned}
        while _owned:
            call(*_owned.pop())
    print(json.dumps(results))
