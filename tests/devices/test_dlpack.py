"""DLPack in both directions on the host, with PyTorch and NumPy."""

import ctypes
import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from fake_driver import FakeDriver

from rocline import DeviceError
from rocline.runtime.devices import capsules, open_device

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
    "complex64": torch.complex64,
}


@pytest.fixture
def device():
    with open_device("cpu") as device:
        yield device
    if capsules._LENT:
        gc.collect()
    assert capsules._LENT == {}, "a capsule or its consumer was not let go of"


@pytest.fixture
def stream(device):
    return device.create_stream()


class Old:
    """A producer from before DLPack 1.0."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, stream=None):
        return self.tensor.__dlpack__(stream=stream)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


class Given:
    """A producer that gives what it was made of."""

    def __init__(self, capsule):
        self.capsule = capsule

    def __dlpack__(self, **_options):
        return self.capsule

    def __dlpack_device__(self):
        return (1, 0)


def data_of(array):
    """The bits, for dtypes that NumPy or PyTorch compare badly."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


@pytest.mark.parametrize("shape", [(2, 3), (), (0, 2), (5, 1, 7)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_to_torch(device, stream, dtype, shape):
    buffer = device.allocate(shape, dtype, stream=stream)
    buffer.array[...] = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(buffer.dtype)
    tensor = torch.from_dlpack(buffer)
    assert (tensor.dtype, tuple(tensor.shape)) == (DTYPES[dtype], shape)
    if tensor.numel():
        assert tensor.data_ptr() == buffer.pointer
        tensor += 1 if dtype != "bool" else True
        expected = tensor.view(torch.uint8) if shape else tensor[None].view(torch.uint8)
        np.testing.assert_array_equal(data_of(buffer.array), expected.numpy().reshape(-1))
    del tensor


@pytest.mark.parametrize("shape", [(2, 3), (), (0, 2), (5, 1, 7)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("age", [Old, lambda tensor: tensor])
def test_from_torch(device, stream, dtype, shape, age):
    tensor = torch.arange(int(np.prod(shape))).reshape(shape).to(DTYPES[dtype])
    buffer = device.from_dlpack(age(tensor), stream=stream)
    assert (buffer.dtype.name, buffer.shape, buffer.read_only) == (dtype, shape, False)
    if tensor.numel():
        assert buffer.pointer == tensor.data_ptr()
        buffer.fill(1, stream=stream)
        flat = tensor.reshape(-1).view(torch.uint8)
        assert torch.all(flat == 1)
    buffer.close()


def test_numpy_both_ways(device, stream):
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    buffer = device.from_dlpack(array, stream=stream)
    assert buffer.pointer == array.ctypes.data
    back = np.from_dlpack(buffer)
    assert back.ctypes.data == array.ctypes.data
    np.testing.assert_array_equal(back, array)
    back[0, 0] = 9
    assert array[0, 0] == 9


def test_a_slice_begins_at_its_offset(device, stream):
    tensor = torch.arange(12.0)
    buffer = device.from_dlpack(tensor[4:8], stream=stream)
    np.testing.assert_array_equal(buffer.array, [4, 5, 6, 7])


def test_memory_lives_as_long_as_the_consumer(device, stream):
    buffer = device.upload(np.arange(4.0), stream=stream)
    tensor = torch.from_dlpack(buffer)
    other = tensor[1:]
    buffer.close()
    del tensor
    assert device.pool.statistics.used
    device.allocate((4,), np.float64, stream=stream).array[:] = -1
    assert other.tolist() == [1, 2, 3]
    del other
    assert device.pool.statistics.used == 0


def test_a_producer_lives_as_long_as_the_buffer(device, stream):
    tensor = torch.arange(4.0)
    alive = weakref.ref(tensor)
    buffer = device.from_dlpack(tensor, stream=stream)
    view = buffer.view(2)
    del tensor
    buffer.close()
    assert view.array.tolist() == [0, 1]
    assert alive() is not None or view.pointer
    view.close()
    array = np.arange(4.0)
    alive = weakref.ref(array)
    buffer = device.from_dlpack(array, stream=stream)
    del array
    gc.collect()
    assert alive() is not None
    buffer.close()
    assert alive() is None


def test_a_capsule_that_nobody_takes_is_let_go(device, stream):
    buffer = device.upload(np.arange(4.0), stream=stream)
    for version in (None, (1, 0)):
        capsule = buffer.__dlpack__(max_version=version)
        assert len(capsules._LENT) == 1
        del capsule
        assert capsules._LENT == {}

    def fail():
        capsule = buffer.__dlpack__()
        raise KeyError(str(capsule))

    with pytest.raises(KeyError, match="capsule"):
        fail()


def test_a_capsule_is_taken_once(device, stream):
    capsule = device.upload(np.arange(4.0), stream=stream).__dlpack__()
    first = device.from_dlpack(Given(capsule), stream=stream)
    with pytest.raises(DeviceError, match="no capsule that DLPack knows, or was taken already"):
        device.from_dlpack(Given(capsule), stream=stream)
    first.close()


@pytest.mark.parametrize(
    ("version", "name"),
    [(None, "dltensor"), ((0, 8), "dltensor"), ((1, 0), "dltensor_versioned"), ((2, 3), "dltensor_versioned")],
)
def test_capsule_by_version(device, stream, version, name):
    capsule = device.allocate(4, stream=stream).__dlpack__(max_version=version)
    assert f'"{name}"' in repr(capsule)


def test_read_only_stays_read_only(device, stream):
    array = np.arange(4.0)
    array.flags.writeable = False
    buffer = device.from_dlpack(array, stream=stream)
    assert buffer.read_only
    assert not np.from_dlpack(buffer).flags.writeable
    with pytest.raises(BufferError, match=r"read-only, which a consumer of DLPack before 1.0 cannot be told"):
        buffer.__dlpack__()
    with pytest.raises(DeviceError, match="read-only"):
        buffer.fill(0, stream=stream)


@pytest.mark.parametrize("copy", [True, False, None])
def test_copy(device, stream, copy):
    buffer = device.upload(np.arange(4.0), stream=stream)
    array = np.from_dlpack(buffer, copy=copy)
    assert (array.ctypes.data != buffer.pointer) is (copy is True)
    np.testing.assert_array_equal(array, np.arange(4.0))
    buffer.close()
    del array
    assert device.pool.statistics.used == 0


def test_refused_tensors(device, stream):
    for tensor, message in (
        (torch.zeros(4, 4).T, r"strides \(1, 4\) of shape \(4, 4\), expected a contiguous tensor"),
        (torch.zeros(8)[::2], r"strides \(2,\) of shape \(4,\)"),
        (torch.zeros(4, dtype=torch.float8_e4m3fn), r"data type \d+ of 8 bits and 1 lanes is unknown here"),
        (torch.zeros(4, requires_grad=True), "Tensor gives nothing: Can't export tensors that require gradient"),
        (torch.zeros(4, device="meta"), "Tensor gives nothing: Unknown device type meta"),
        (np.zeros(4, ">f4"), "ndarray gives nothing: DLPack only supports native byte order"),
        ([0.0], "list, expected a tensor with __dlpack__ and __dlpack_device__"),
        (torch.zeros(4).__dlpack__(), "PyCapsule, expected a tensor with"),
    ):
        with pytest.raises(DeviceError, match=f"from_dlpack: {message}"):
            device.from_dlpack(tensor, stream=stream)
    with pytest.raises(DeviceError, match=r"from_dlpack: Tensor on kDLCPU:0, hip:0 takes kDLROCM:0"):
        FakeDriver().device().from_dlpack(torch.zeros(4), stream=stream)


def test_a_capsule_is_where_its_producer_says(device, stream):
    with FakeDriver().device() as gpu:
        capsule = gpu.allocate(4, stream=gpu.create_stream()).__dlpack__()
        with pytest.raises(DeviceError, match=r"a capsule on kDLROCM:0 of a producer on kDLCPU:0"):
            device.from_dlpack(Given(capsule), stream=stream)
        del capsule


def test_a_strange_version_is_refused(device, stream):
    capsule = device.allocate(4, stream=stream).__dlpack__(max_version=(1, 0))
    address = capsules._capsule_pointer(capsule, b"dltensor_versioned")
    ctypes.c_uint32.from_address(address).value = 9
    with pytest.raises(DeviceError, match=r"DLPack 9.0, expected version 1"):
        device.from_dlpack(Given(capsule), stream=stream)


def test_axes_of_size_one_may_have_any_stride(device, stream):
    tensor = torch.arange(6.0).reshape(2, 3)[:, None, :].transpose(0, 1)
    assert device.from_dlpack(tensor, stream=stream).array.tolist() == [[[0, 1, 2], [3, 4, 5]]]


def test_consumers_may_let_go_on_any_thread(device, stream):
    buffers = [device.upload(np.arange(4.0), stream=stream) for _ in range(20)]
    tensors = [torch.from_dlpack(buffer) for buffer in buffers]
    for buffer in buffers:
        buffer.close()
    thread = threading.Thread(target=tensors.clear)
    thread.start()
    thread.join()
    assert device.pool.statistics.used == 0


def test_a_consumer_may_outlive_the_interpreter():
    code = (
        "import numpy as np, torch\nfrom rocline.runtime.devices import open_device\n"
        "device = open_device('cpu')\nbuffer = device.upload(np.arange(4.0), stream=device.create_stream())\n"
        "torch.kept = torch.from_dlpack(buffer)\ntorch.untaken = buffer.__dlpack__()\nbuffer.close()\n"
        "print(torch.kept.sum().item())"
    )
    ran = subprocess.run([sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "6.0\n", "")


def test_closed(device, stream):
    buffer = device.allocate(4, stream=stream)
    buffer.close()
    with pytest.raises(DeviceError, match="closed"):
        buffer.__dlpack__()


@pytest.mark.parametrize("number", [1, 0x7770])
def test_the_host_has_no_streams(device, stream, number):
    with pytest.raises(DeviceError, match=f"stream {number} means nothing on kDLCPU, expected None"):
        device.allocate(4, stream=stream).__dlpack__(stream=number)
