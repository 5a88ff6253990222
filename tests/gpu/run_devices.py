"""Checks devices, streams, buffers and DLPack on an NVIDIA GPU, with PyTorch and CuPy as the other side.

    python tests/gpu/run_devices.py [--json FILE]

Streams are made to lag by a kernel that waits, so that an edge that is missing shows as a wrong value; each such check
is made a second time with the edge taken out, and has to fail then. These are results of an NVIDIA card.
"""

import argparse
import contextlib
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import device_programs

from rocline import DeviceMemoryError
from rocline.runtime.devices import open_device

# About 50 ms on an H100.
LAG = 100_000_000
SIZE = 1 << 20
TORCH = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


def lag(stream):
    """Lets a stream, ours or PyTorch's, do nothing for a while."""
    with torch.cuda.stream(torch.cuda.ExternalStream(getattr(stream, "handle", None) or stream.cuda_stream)):
        torch.cuda._sleep(LAG)


def programs_that_the_simulated_device_runs(device):
    for name, program in device_programs.PROGRAMS.items():
        with open_device(device.kind) as own:
            program(own)
        print(f"    {name}")
    return f"{len(device_programs.PROGRAMS)} programs"


def export_to_torch_copies_nothing(device):
    stream = device.create_stream()
    for name, dtype in TORCH.items():
        buffer = device.allocate((3, 5), name, stream=stream, zero=True)
        tensor = torch.from_dlpack(buffer)
        assert (tensor.dtype, tensor.data_ptr(), tuple(tensor.shape)) == (dtype, buffer.pointer, (3, 5)), name
        tensor += True if dtype == torch.bool else 1
        assert np.all(buffer.numpy(stream=stream).astype(np.float32) == 1), name
    return ", ".join(TORCH)


def import_from_torch_copies_nothing(device):
    stream = device.create_stream()
    for name, dtype in TORCH.items():
        tensor = torch.ones(3, 5, dtype=dtype, device="cuda")
        buffer = device.from_dlpack(tensor, stream=stream)
        assert (buffer.dtype.name, buffer.pointer, buffer.shape) == (name, tensor.data_ptr(), (3, 5))
        assert np.all(buffer.numpy().astype(np.float32) == 1), name
    return ", ".join(TORCH)


def memory_of_a_tensor_outlives_its_buffer(device):
    stream = device.create_stream()
    buffer = device.upload(np.arange(SIZE, dtype=np.float32), stream=stream)
    tensor = torch.from_dlpack(buffer)
    buffer.close()
    device.allocate((SIZE,), np.float32, stream=stream, zero=True)
    assert tensor[-1].item() == SIZE - 1
    del tensor
    assert device.pool.statistics.used == 0


def torch_waits_for_us(device, edge=True):
    stream, theirs = device.create_stream(), torch.cuda.Stream()
    buffer = device.allocate((SIZE,), np.float32, stream=stream, zero=True)
    stream.synchronize()
    lag(stream)
    buffer.copy_from(np.ones(SIZE, np.float32), stream=stream)
    with torch.cuda.stream(theirs):
        tensor = torch.from_dlpack(buffer) if edge else torch.utils.dlpack.from_dlpack(buffer.__dlpack__(stream=-1))
        return tensor.sum().item() == SIZE


def we_wait_for_torch(device, edge=True):
    stream, theirs = device.create_stream(), torch.cuda.Stream()
    buffer = device.allocate((SIZE,), np.float32, stream=stream, zero=True)
    stream.synchronize()
    with torch.cuda.stream(theirs):
        tensor = torch.from_dlpack(buffer) if edge else torch.utils.dlpack.from_dlpack(buffer.__dlpack__(stream=-1))
        lag(theirs)
        tensor.fill_(1)
    return bool(np.all(buffer.numpy(stream=stream) == 1))


def torchs_work_comes_before_ours(device):
    """A tensor that PyTorch is still writing."""
    stream, theirs = device.create_stream(), torch.cuda.Stream()
    for side in (theirs, torch.cuda.default_stream()):
        with torch.cuda.stream(side):
            tensor = torch.zeros(SIZE, device="cuda")
            side.synchronize()
            torch.cuda._sleep(LAG)
            tensor.fill_(1)
            with device.from_dlpack(tensor, stream=stream) as buffer:
                assert np.all(buffer.numpy() == 1)


def a_buffer_wanders(device, edge=True):
    one, two = device.create_stream(), device.create_stream()
    buffer, target = (device.allocate((SIZE,), np.float32, stream=stream, zero=True) for stream in (one, two))
    one.synchronize()
    two.synchronize()
    with contextlib.nullcontext() if edge else device_programs.without("handover"):
        lag(one)
        buffer.copy_from(np.ones(SIZE, np.float32), stream=one)
        target.copy_from(buffer, stream=two)
        return bool(np.all(target.numpy(stream=two) == 1))


def memory_is_reused_in_order(device, edge=True):
    one, two = device.create_stream(), device.create_stream()
    target = device.allocate((SIZE,), np.float32, stream=one)
    source = device.upload(np.ones(SIZE, np.float32), stream=one)
    pointer = source.pointer
    one.synchronize()
    lag(one)
    target.copy_from(source, stream=one)
    source.close()
    with contextlib.nullcontext() if edge else device_programs.without("reuse"):
        other = device.allocate((SIZE,), np.float32, stream=two, zero=True)
    assert other.pointer == pointer
    return bool(np.all(target.numpy(stream=one) == 1))


def pinned_memory_is_reused_in_order(device, edge=True):
    stream = device.create_stream()
    array = np.empty(SIZE, np.float32)
    with contextlib.nullcontext() if edge else device_programs.without("staging"):
        lag(stream)
        buffers = []
        for turn in range(4):
            array[:] = turn
            buffers.append(device.upload(array, stream=stream))
    return all(np.all(buffer.numpy() == turn) for turn, buffer in enumerate(buffers))


def the_host_waits_for_what_it_reads(device, edge=True):
    stream = device.create_stream()
    buffer = device.upload(np.zeros(SIZE, np.float32), stream=stream)
    buffer.numpy()
    lag(stream)
    buffer.copy_from(np.ones(SIZE, np.float32), stream=stream)
    with contextlib.nullcontext() if edge else device_programs.without("fetch"):
        return bool(np.all(buffer.numpy() == 1))


def cupy_both_ways(device):
    import cupy

    stream = device.create_stream()
    buffer = device.upload(np.arange(12, dtype=np.float32).reshape(3, 4), stream=stream)
    array = cupy.from_dlpack(buffer)
    assert array.data.ptr == buffer.pointer
    array *= 2
    back = device.from_dlpack(array, stream=stream)
    assert back.pointer == buffer.pointer
    np.testing.assert_array_equal(back.numpy(), 2 * np.arange(12, dtype=np.float32).reshape(3, 4))


def out_of_memory_is_named(device):
    stream = device.create_stream()
    asked = device.memory_info().total // (2 << 20) * (4 << 20)
    try:
        device.allocate(asked, stream=stream)
    except DeviceMemoryError as error:
        assert str(error).startswith("cudaMalloc: cudaErrorMemoryAllocation (2): out of memory; asked "), error
        torch.ones(4, device="cuda").sum().item()
        return str(error)
    raise AssertionError("twice the card's memory was given")


def memory_does_not_grow(device, turns=20_000):
    one, two = device.create_stream(), device.create_stream()
    array = np.ones(2048, np.float32)

    def cycle():
        with device.upload(array, stream=one) as buffer, device.allocate(array.shape, "float32", stream=two) as target:
            target.copy_from(buffer, stream=two)
            target.numpy()
            torch.from_dlpack(target)

    for _ in range(200):
        cycle()
    free, resident, events = device.memory_info().free, resident_kib(), len(device._events)
    begin = time.perf_counter()
    for _ in range(turns):
        cycle()
    took = time.perf_counter() - begin
    grown = resident_kib() - resident
    assert device.memory_info().free == free
    assert len(device._events) == events
    assert grown < 8 << 10, f"{grown} KiB more"
    return f"{turns} cycles, {took / turns * 1e6:.1f} us each, host memory +{grown} KiB, device memory +0"


def resident_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def what_calls_cost(device):
    stream, other = device.create_stream(), device.create_stream()
    array = np.ones(16, np.float32)
    buffer, target = (device.upload(array, stream=stream) for _ in range(2))
    calls = {
        "use on the same stream": lambda: buffer.use(stream, write=True),
        "use on another stream and back": lambda: (buffer.use(other, write=True), buffer.use(stream, write=True)),
        "allocate and close": lambda: device.allocate((16,), "float32", stream=stream).close(),
        "copy on the device": lambda: target.copy_from(buffer, stream=stream),
        "copy 64 bytes from the host": lambda: buffer.copy_from(array, stream=stream),
        "read 64 bytes": buffer.numpy,
        "export by DLPack": lambda: buffer.__dlpack__(stream=stream.handle, max_version=(1, 0)),
    }
    return {name: f"{median_us(call):.1f} us" for name, call in calls.items()}


def median_us(call, turns=2000):
    times = []
    for _ in range(turns):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return float(np.median(times)) * 1e6


CHECKS = (
    programs_that_the_simulated_device_runs,
    export_to_torch_copies_nothing,
    import_from_torch_copies_nothing,
    memory_of_a_tensor_outlives_its_buffer,
    torchs_work_comes_before_ours,
    cupy_both_ways,
    out_of_memory_is_named,
    memory_does_not_grow,
    what_calls_cost,
)
ORDERED = (
    torch_waits_for_us,
    we_wait_for_torch,
    a_buffer_wanders,
    memory_is_reused_in_order,
    pinned_memory_is_reused_in_order,
    the_host_waits_for_what_it_reads,
)
"""Checks that give whether the values were right, with or without the edge that they are about."""


def run():
    """Makes every check and returns what each found, by name.

    Raises:
        AssertionError: a check failed.
    """
    found = {}
    for check in (*CHECKS, *ORDERED):
        with open_device("cuda") as device:
            found[check.__name__] = check(device)
        if check in ORDERED:
            assert found[check.__name__] is True, f"{check.__name__}: wrong values"
            with open_device("cuda") as device:
                assert check(device, edge=False) is False, f"{check.__name__}: right values without the edge too"
        print(f"{check.__name__}: {found[check.__name__] or 'passed'}", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {"card": torch.cuda.get_device_name(), **run()}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
