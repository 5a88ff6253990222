"""Devices, streams, events and buffers on the host, where everything that is queued is done."""

import gc
import subprocess
import sys
import weakref

import ml_dtypes
import numpy as np
import pytest

from rocline import DeviceError, DeviceMemoryError
from rocline.runtime.devices import open_device
from rocline.runtime.devices.dtypes import checked_dtype, checked_shape


@pytest.fixture
def device():
    with open_device("cpu") as device:
        yield device


@pytest.fixture
def stream(device):
    return device.create_stream()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool", "uint8", "complex64"])
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (0, 4), (2, 1, 19)])
def test_round_trip(device, stream, dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(checked_dtype(dtype))
    with device.upload(array, stream=stream) as buffer:
        assert (buffer.shape, buffer.dtype, buffer.nbytes) == (shape, array.dtype, array.nbytes)
        assert (buffer.device, buffer.stream) == (device, stream)
        assert buffer.pointer % 64 == 0
        got = buffer.numpy()
        fetched = buffer.fetch(stream=stream)
        assert fetched.done
        for result in (got, fetched.numpy(), buffer.array):
            assert result.dtype == array.dtype
            np.testing.assert_array_equal(result, array)
        buffer.fill(0, stream=stream)
        assert not np.any(buffer.array.view(np.uint8) if shape else buffer.array)
        np.testing.assert_array_equal(got, array)


def test_copies_between_buffers_and_arrays(device, stream):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    source, target = device.upload(array, stream=stream), device.allocate((4, 3), np.float32, stream=stream)
    target.copy_from(source, stream=stream)
    np.testing.assert_array_equal(target.numpy(), array.reshape(4, 3))
    target.copy_from(array.T, stream=stream)
    np.testing.assert_array_equal(target.numpy(), array.T)
    out = np.empty((2, 6), np.float32)
    source.copy_to(out, stream=stream)
    np.testing.assert_array_equal(out, array.reshape(2, 6))
    source.copy_to(target, stream=stream)
    np.testing.assert_array_equal(target.array, array.reshape(4, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda buffer, stream: buffer.copy_from(np.zeros((2, 4), np.float32), stream=stream),
            r"copy_from: float32 \(2, 4\) has 32 bytes, buffer float32 \(2, 3\) on cpu:0 has 24: dtype and size",
        ),
        (
            lambda buffer, stream: buffer.copy_from(np.zeros((2, 3), np.int32), stream=stream),
            r"copy_from: int32 \(2, 3\) has 24 bytes, buffer float32",
        ),
        (lambda buffer, stream: buffer.copy_to(np.zeros(7, np.float32), stream=stream), r"copy_to: .* 28 bytes"),
        (lambda buffer, stream: buffer.fill(256, stream=stream), "fill: 256, expected a byte from 0 to 255"),
        (lambda buffer, stream: buffer.view((7,)), r"view float32 \(7,\): 28 bytes, .* has 24"),
        (lambda buffer, stream: buffer.device.allocate((-1,), stream=stream), r"shape \(-1,\): expected whole numbers"),
        (lambda buffer, stream: buffer.device.allocate((1.5,), stream=stream), r"shape \(1.5,\): expected whole"),
        (lambda buffer, stream: buffer.device.allocate(None, stream=stream), "shape None: expected whole numbers"),
        (lambda buffer, stream: buffer.device.upload(np.zeros(1, ">f4"), stream=stream), "dtype >f4: .* byte order"),
        (lambda buffer, stream: buffer.device.allocate(1, "longdouble", stream=stream), "dtype <f16: .* IEEE formats"),
        (lambda buffer, stream: buffer.device.allocate(1, "nonsense", stream=stream), "dtype 'nonsense': unknown"),
        (lambda buffer, stream: buffer.device.allocate(1, object, stream=stream), "dtype object: .* numbers only"),
        (lambda buffer, stream: buffer.device.allocate(1, ml_dtypes.int4, stream=stream), "dtype int4: .* numbers"),
        (lambda buffer, stream: buffer.device.wrap(np.zeros((4, 4))[:, 1]), r"wrap: the array .* is not contiguous"),
    ],
)
def test_refusals(device, stream, call, message):
    with device.allocate((2, 3), np.float32, stream=stream) as buffer, pytest.raises(DeviceError, match=message):
        call(buffer, stream)


def test_overlapping_copies_are_refused(device, stream):
    """A GPU may do them in any order, so the host does not do them either."""
    array = np.arange(6.0)
    whole, head, tail = device.wrap(array), device.wrap(array[:4]), device.wrap(array[2:])
    with pytest.raises(DeviceError, match=r"copy_from: buffer float64 \(4,\) .* overlap, by all but 16 bytes"):
        head.copy_from(tail, stream=stream)
    whole.copy_from(whole.view((2, 3)), stream=stream)
    device.wrap(array[:2]).copy_from(device.wrap(array[2:4]), stream=stream)
    np.testing.assert_array_equal(array, [2, 3, 2, 3, 4, 5])


def test_an_array_that_cannot_be_written_is_no_target(device, stream):
    out = np.zeros(2, np.float32)
    out.flags.writeable = False
    buffer = device.allocate((2,), np.float32, stream=stream)
    with pytest.raises(DeviceError, match=r"copy_to: the array float32 \(2,\) is read-only"):
        buffer.copy_to(out, stream=stream)


def test_wrapped_array_is_the_buffer(device, stream):
    array = np.arange(6, dtype=ml_dtypes.bfloat16)
    buffer = device.wrap(array)
    assert buffer.pointer == array.ctypes.data
    buffer.fill(0, stream=stream)
    assert not array.any()
    alive = weakref.ref(array)
    del array
    gc.collect()
    assert alive() is not None
    buffer.close()
    assert alive() is None


def test_wrapped_arrays_need_no_stream_of_others(device, stream):
    buffer = device.wrap(np.arange(3))
    stream.close()
    assert buffer.fetch().numpy().tolist() == [0, 1, 2]


def test_wrapped_read_only_array_stays_read_only(device, stream):
    array = np.arange(6)
    array.flags.writeable = False
    buffer = device.wrap(array)
    assert buffer.read_only
    with pytest.raises(ValueError, match="read-only"):
        buffer.array[0] = 1
    for write in (lambda: buffer.fill(0, stream=stream), lambda: buffer.copy_from(array, stream=stream)):
        with pytest.raises(DeviceError, match="read-only, its producer does not let it be written"):
            write()


def test_views_share_memory_and_keep_it(device, stream):
    buffer = device.upload(np.arange(8, dtype=np.int32), stream=stream)
    head = buffer.view((1, 2, 2))
    raw = buffer.view(32, np.uint8)
    buffer.close()
    assert device.pool.statistics.used
    np.testing.assert_array_equal(head.numpy(), [[[0, 1], [2, 3]]])
    raw.fill(1, stream=stream)
    assert head.array[0, 0, 0] == 0x01010101
    head.close()
    raw.close()
    assert device.pool.statistics.used == 0


def test_closed_things_say_so(device):
    stream = device.create_stream()
    buffer, other = (device.allocate((2,), np.float32, stream=stream) for _ in range(2))
    event, copy = stream.record(), buffer.fetch()
    assert event.done
    event.synchronize()
    stream.wait(event)
    for thing in (copy, event, buffer, stream):
        thing.close()
        thing.close()
        assert thing.closed
    fresh = device.create_stream()
    for use, name in (
        (lambda: buffer.pointer, "buffer"),
        (lambda: buffer.array, "buffer"),
        (buffer.numpy, "buffer"),
        (lambda: buffer.view(1), "buffer"),
        (lambda: buffer.fill(0, stream=fresh), "buffer"),
        (lambda: other.copy_from(buffer, stream=fresh), "buffer"),
        (lambda: other.fill(0, stream=stream), "stream .* which is"),
        (lambda: device.allocate(1, stream=stream), "stream .* is"),
        (lambda: event.done, "event"),
        (event.synchronize, "event"),
        (lambda: fresh.wait(event), "event"),
        (copy.numpy, "copy"),
        (stream.record, "stream"),
        (stream.synchronize, "stream"),
        (lambda: stream.wait(fresh), "stream"),
    ):
        with pytest.raises(DeviceError, match=f"{name}.* closed$|{name}.*: closed$"):
            use()
    fresh.wait(stream)
    device.close()
    device.close()
    assert fresh.closed
    assert other.closed
    for use in (device.create_stream, device.memory_info, lambda: device.wrap(np.zeros(1))):
        with pytest.raises(DeviceError, match="cpu:0: closed"):
            use()


def test_dropped_buffers_give_their_memory_back(device, stream):
    device.allocate(1000, stream=stream)
    gc.collect()
    assert device.pool.statistics.used == 0


def test_limit_of_the_pool():
    with open_device("cpu", limit=4096) as device:
        stream = device.create_stream()
        held = device.allocate(3000, stream=stream)
        with pytest.raises(
            DeviceMemoryError, match=r"cpu:0: the pool's limit of 4,096 bytes is reached; asked 2,000 b"
        ):
            device.allocate(2000, stream=stream)
        held.close()
        device.allocate(2000, stream=stream)


def test_memory_and_name(device):
    info = device.memory_info()
    assert 0 < info.free <= info.total
    assert device.name
    assert repr(device) == "cpu:0"


@pytest.mark.parametrize(
    ("arguments", "message"), [(("tpu",), "device 'tpu': unknown, expected one of hip, cuda, cpu")]
)
def test_unknown_kind(arguments, message):
    with pytest.raises(DeviceError, match=message):
        open_device(*arguments)


def test_unknown_number():
    with pytest.raises(DeviceError, match="cpu:1: no such device, cpu has 1"):
        open_device("cpu", 1)


def test_too_much_memory(device, stream):
    with pytest.raises(DeviceMemoryError, match=r"cpu: out of memory; asked [\d,]+ bytes, 0 in use here"):
        device.allocate(1 << 60, stream=stream)


def test_shapes_may_be_numpy_integers():
    assert checked_shape(np.array([2, 3])) == (2, 3)
    assert checked_shape(np.int64(3)) == (3,)


def test_importing_devices_loads_no_gpu_library():
    code = "import sys, rocline.runtime.devices; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"hip", "rocm", "cuda", "onnxruntime", "torch"}


def test_without_cuda_bindings():
    code = (
        "import sys; sys.modules['cuda'] = None\n"
        "from rocline.runtime.devices import open_device\n"
        "try: open_device('cuda')\nexcept Exception as error: print(repr(error))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("DeviceError(")
    assert "cuda-bindings cannot be imported" in printed
    assert "pip install 'rocline[cuda]'" in printed
