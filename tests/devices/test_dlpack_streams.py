"""DLPack between GPUs' streams, on a fake driver: the protocol's numbers, and what waits for what."""

import contextlib
import ctypes

import ml_dtypes
import numpy as np
import pytest
import torch
from fake_driver import CUDA, HIP, FakeDriver

from rocline import DeviceError
from rocline.runtime.devices import capsules

# The protocol's stream numbers: what the consumer means, as the handle of a stream or None for no order.
NUMBERS = [
    (CUDA, None, 1),
    (CUDA, 1, 1),
    (CUDA, 2, "2 is another one in each thread, expected one that was created"),
    (CUDA, 0, "0 means nothing on kDLCUDA, expected None, -1, 1 or a handle"),
    (CUDA, -2, "-2 means nothing on kDLCUDA"),
    (CUDA, -1, None),
    (CUDA, 0x7770, 0x7770),
    (HIP, None, 0),
    (HIP, 0, 0),
    (HIP, 1, "1 means nothing on kDLROCM, expected None, -1, 0 or a handle"),
    (HIP, 2, "2 means nothing on kDLROCM"),
    (HIP, -1, None),
    (HIP, 0x7770, 0x7770),
]


@pytest.mark.parametrize(("kind", "number", "meaning"), NUMBERS)
def test_stream_numbers(kind, number, meaning):
    driver = FakeDriver(kind)
    with driver.device() as gpu:
        stream = gpu.create_stream()
        buffer = gpu.allocate(4, stream=stream)
        driver.log.clear()
        if isinstance(meaning, str):
            with pytest.raises(DeviceError, match=f"stream {meaning}"):
                buffer.__dlpack__(stream=number)
            return
        capsule = buffer.__dlpack__(stream=number)
        assert driver.logged("wait") == ([] if meaning is None else [("wait", meaning, stream.handle)])
        assert buffer.storage.strangers is (meaning is None)
        assert buffer.__dlpack_device__() == (kind[1], 0)
        del capsule


class Producer:
    """A tensor of a fake GPU's device, which notes for which stream it was asked."""

    def __init__(self, buffer):
        self.buffer, self.asked = buffer, []

    def __dlpack__(self, *, stream=None, max_version=None):
        self.asked.append((stream, max_version))
        return self.buffer.__dlpack__(stream=stream, max_version=max_version)

    def __dlpack_device__(self):
        return self.buffer.__dlpack_device__()


@pytest.mark.parametrize(("kind", "null"), [(CUDA, 1), (HIP, 0)])
def test_a_producer_is_asked_for_the_stream(kind, null):
    with FakeDriver(kind).device() as gpu:
        stream = gpu.create_stream()
        producer = Producer(gpu.upload(np.arange(4.0), stream=stream))
        buffer = gpu.from_dlpack(producer, stream=stream)
        np.testing.assert_array_equal(buffer.numpy(), np.arange(4.0))
        gpu.from_dlpack(producer, stream=gpu.foreign_stream(0))
        assert producer.asked == [(stream.handle, (1, 0)), (null, (1, 0))]


def test_work_of_a_consumer_is_waited_for():
    driver = FakeDriver()
    with driver.device() as gpu:
        one, theirs = gpu.create_stream(), driver.create_stream(0)
        buffer = gpu.allocate(4, stream=one)
        buffer.fill(1, stream=one)
        capsule = buffer.__dlpack__(stream=theirs)
        driver.fill(buffer.pointer, 2, 4, theirs)
        driver.log.clear()
        buffer.use(one, write=True)
        assert driver.logged("wait") == [("wait", one.handle, theirs)]
        assert buffer.numpy(stream=one).tolist() == [2] * 4
        del capsule
    driver.synchronize_stream(theirs)
    driver.destroy_stream(theirs)
    assert driver.leaks() == {}


def test_an_imported_tensor_is_let_go_after_the_work_that_uses_it():
    driver = FakeDriver()
    with driver.device() as gpu:
        one = gpu.create_stream()
        source = gpu.upload(np.arange(4.0), stream=one)
        taken = gpu.from_dlpack(Producer(source), stream=one)
        target = gpu.allocate((4,), np.float64, stream=one)
        target.copy_from(taken, stream=one)
        source.close()
        driver.log.clear()
        taken.close()
        assert driver.logged("synchronize_stream") == [("synchronize_stream", one.handle)]
        np.testing.assert_array_equal(target.numpy(), np.arange(4.0))


def test_an_imported_tensor_is_let_go_even_where_a_wait_fails():
    driver = FakeDriver()
    with driver.device() as gpu:
        one = gpu.create_stream()
        source = gpu.upload(np.arange(4.0), stream=one)
        taken = gpu.from_dlpack(Producer(source), stream=one)
        source.close()
        driver.failing["synchronize_stream"] = 0
        with pytest.raises(DeviceError, match="synchronize_stream: told to fail"):
            taken.close()
        driver.failing.clear()
        assert gpu.pool.statistics.used == 0


def test_an_imported_tensor_that_went_to_a_stranger_is_let_go_after_the_whole_device():
    driver = FakeDriver()
    with driver.device() as gpu:
        one = gpu.create_stream()
        source = gpu.upload(np.arange(4.0), stream=one)
        taken = gpu.from_dlpack(Producer(source), stream=one)
        capsule = taken.__dlpack__(stream=-1)
        taken.close()
        driver.log.clear()
        del capsule
        assert driver.logged("synchronize_device")


def test_a_copy_for_a_stranger_is_there_when_it_is_given():
    driver = FakeDriver()
    with driver.device() as gpu:
        with gpu.create_stream() as one:
            buffer = gpu.upload(np.arange(4.0), stream=one)
        driver.log.clear()
        capsule = buffer.__dlpack__(stream=-1, copy=True, max_version=(1, 0))
        assert [entry[0] for entry in driver.log][-3:] == ["copy", "synchronize_stream", "destroy_stream"]
        driver.log.clear()
        del capsule
        gpu.allocate((4,), np.float64, stream=gpu.create_stream())
        assert driver.logged("synchronize_device"), "a stranger may still use the memory"


def test_a_producer_is_asked_on_the_tensors_device():
    """PyTorch refuses to export a tensor of a device that is not the current one."""
    current = []

    class Driver(FakeDriver):
        @contextlib.contextmanager
        def on(self, device_id):
            current.append(device_id)
            yield
            current.pop()

    class Strict(Producer):
        def __dlpack__(self, **options):
            assert current == [1]
            return super().__dlpack__(**options)

    with Driver(devices=2).device(1) as gpu:
        stream = gpu.create_stream()
        gpu.from_dlpack(Strict(gpu.allocate(4, stream=stream)), stream=stream).close()


def test_a_gpu_gives_the_host_a_copy():
    with FakeDriver().device() as gpu:
        buffer = gpu.upload(np.arange(4, dtype=ml_dtypes.bfloat16), stream=gpu.create_stream())
        tensor = torch.utils.dlpack.from_dlpack(buffer.__dlpack__(dl_device=(1, 0), max_version=(1, 0)))
        assert tensor.dtype == torch.bfloat16
        assert tensor.tolist() == [0, 1, 2, 3]
        with pytest.raises(BufferError, match="cannot be exported to kDLCPU:0 without a copy"):
            buffer.__dlpack__(dl_device=(1, 0), copy=False)
        with pytest.raises(BufferError, match="cannot be exported to kDLCUDA:0, only as it is or to the host"):
            buffer.__dlpack__(dl_device=(2, 0))
        copied = buffer.__dlpack__(copy=True, stream=0)
        address = capsules._capsule_pointer(copied, b"dltensor")
        assert ctypes.c_void_p.from_address(address).value != buffer.pointer


def test_numpy_takes_a_copy_from_a_gpu():
    with FakeDriver().device() as gpu:
        buffer = gpu.upload(np.arange(4.0), stream=gpu.create_stream())
        np.testing.assert_array_equal(np.from_dlpack(buffer, device="cpu"), np.arange(4.0))


def test_a_tensor_is_taken_for_a_stream_of_its_device():
    with FakeDriver(devices=2).device() as gpu, gpu.driver.device(1) as other:
        producer = gpu.allocate(4, stream=gpu.create_stream())
        with pytest.raises(DeviceError, match=r"from_dlpack on hip:0: stream 0x\w+ on hip:1 is another device's"):
            gpu.from_dlpack(producer, stream=other.create_stream())
