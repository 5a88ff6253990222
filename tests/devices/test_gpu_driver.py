"""The checker of HIP's and CUDA's statuses, on bindings made of Python; every call of the driver passes it."""

import enum
import itertools
from types import SimpleNamespace

import pytest

from rocline import DeviceError, DeviceMemoryError
from rocline.runtime.devices.device import Device
from rocline.runtime.devices.driver import Direction
from rocline.runtime.devices.gpu import GpuDriver


class Status(enum.IntEnum):
    success = 0
    invalid = 1
    memory = 2
    not_ready = 600


class Kind(enum.Enum):
    hipMemcpyHostToDevice = 1
    hipMemcpyDeviceToHost = 2
    hipMemcpyDeviceToDevice = 3


class Bindings:
    """Each call gives the next of its results, else success and a number; ``hipGetErrorString`` explains."""

    hipMemcpyKind = Kind

    def __init__(self):
        self.calls, self.results, self.current = [], {}, 0

    def __getattr__(self, name):
        if not name.startswith("hip"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append((name, *arguments))
            if name in self.results:
                result = self.results[name]
                if isinstance(result, Exception):
                    raise result
                return result
            return (Status.success, *GIVES.get(name, ()))

        return call

    def hipGetErrorName(self, status):
        return Status.success, f"hipError{status.name.title()}".encode()

    def hipGetErrorString(self, status):
        return Status.success, b"some words"

    def hipGetDevice(self):
        return Status.success, self.current

    def hipSetDevice(self, device_id):
        self.calls.append(("hipSetDevice", device_id))
        self.current = device_id
        return (Status.success,)


GIVES = {
    "hipGetDeviceCount": (2,),
    "hipGetDeviceProperties": (SimpleNamespace(name=b"a card"),),
    "hipMemGetInfo": (1, 2),
    **dict.fromkeys(("hipMalloc", "hipHostMalloc", "hipStreamCreateWithFlags", "hipEventCreateWithFlags"), (64,)),
}

# Each call of the driver: the runtime's call that fails, and the driver's.
CALLS = {
    "hipGetDeviceCount": lambda driver: driver.count(),
    "hipGetDeviceProperties": lambda driver: driver.name(0),
    "hipMemGetInfo": lambda driver: driver.memory_info(0),
    "hipMalloc": lambda driver: driver.allocate(0, 4096),
    "hipFree": lambda driver: driver.free(0, 64),
    "hipHostMalloc": lambda driver: driver.allocate_pinned(0, 4096),
    "hipHostFree": lambda driver: driver.free_pinned(0, 64),
    "hipStreamCreateWithFlags": lambda driver: driver.create_stream(0),
    "hipStreamDestroy": lambda driver: driver.destroy_stream(64),
    "hipStreamSynchronize": lambda driver: driver.synchronize_stream(64),
    "hipDeviceSynchronize": lambda driver: driver.synchronize_device(0),
    "hipEventCreateWithFlags": lambda driver: driver.create_event(0),
    "hipEventDestroy": lambda driver: driver.destroy_event(64),
    "hipEventRecord": lambda driver: driver.record_event(64, 65),
    "hipStreamWaitEvent": lambda driver: driver.wait_event(65, 64),
    "hipEventQuery": lambda driver: driver.event_done(64),
    "hipEventSynchronize": lambda driver: driver.synchronize_event(64),
    "hipMemcpyAsync": lambda driver: driver.copy(1, 2, 4096, Direction.TO_HOST, 0x40),
    "hipMemsetAsync": lambda driver: driver.fill(1, 7, 4096, 0x40),
}


@pytest.fixture
def bindings():
    return Bindings()


@pytest.fixture
def driver(bindings):
    return GpuDriver(bindings, "hip", ("HostMalloc", "HostFree"))


@pytest.mark.parametrize("call", CALLS)
def test_success(driver, bindings, call):
    CALLS[call](driver)
    assert call in [name for name, *_ in bindings.calls]
    assert "hipGetLastError" not in [name for name, *_ in bindings.calls]


@pytest.mark.parametrize("call", CALLS)
def test_failure(driver, bindings, call):
    bindings.results[call] = (Status.invalid, None)
    with pytest.raises(DeviceError, match=rf"^{call}: hipErrorInvalid \(1\): some words") as caught:
        CALLS[call](driver)
    assert not isinstance(caught.value, DeviceMemoryError)
    assert bindings.calls[-1] == ("hipGetLastError",), "ONNX Runtime would find this error after its next launch"


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_the_library_lacks(driver, bindings, call):
    bindings.results[call] = RuntimeError(f"failed to dlsym '{call}'")
    with pytest.raises(DeviceError, match=f"^{call}: failed to dlsym"):
        CALLS[call](driver)


@pytest.mark.parametrize("call", CALLS)
def test_a_forked_process_calls_nothing(driver, bindings, call):
    driver.kind = "hip"
    CALLS[call](driver)
    bindings.calls.clear()
    driver.forked()
    with pytest.raises(DeviceError, match=r"^hip\w+: hip was in use before this process was forked"):
        CALLS[call](driver)
    assert bindings.calls == []


@pytest.mark.parametrize("call", ["hipMalloc", "hipHostMalloc"])
def test_out_of_memory(driver, bindings, call):
    bindings.results[call] = (Status.memory, None)
    with pytest.raises(DeviceMemoryError, match=rf"^{call}: hipErrorMemory \(2\): some words; asked 4,096 bytes$"):
        CALLS[call](driver)


def test_a_failed_copy_says_what_was_copied(driver, bindings):
    bindings.results["hipMemcpyAsync"] = (Status.invalid,)
    with pytest.raises(DeviceError, match=r"; 4,096 bytes, hipMemcpyDeviceToHost, stream 0x40$"):
        CALLS["hipMemcpyAsync"](driver)


def test_words_that_say_nothing_new_are_left_out(driver, bindings):
    bindings.results["hipFree"] = (Status.invalid,)
    bindings.hipGetErrorString = lambda status: (Status.success, b"hipErrorInvalid")
    with pytest.raises(DeviceError, match=r"^hipFree: hipErrorInvalid \(1\)$"):
        driver.free(0, 64)


def test_a_status_that_the_library_cannot_explain(driver, bindings):
    bindings.results["hipFree"] = (Status.invalid,)
    bindings.hipGetErrorName = bindings.hipGetErrorString = lambda status: (Status.success, None)
    with pytest.raises(DeviceError, match=r"^hipFree: unknown error \(1\)$"):
        driver.free(0, 64)


def test_an_event_that_is_not_done_is_no_error(driver, bindings):
    bindings.results["hipEventQuery"] = (Status.not_ready,)
    assert driver.event_done(64) is False
    assert bindings.calls[-1] == ("hipGetLastError",)


def test_nothing_is_copied_or_filled_for_no_bytes(driver, bindings):
    driver.copy(1, 2, 0, Direction.ON_DEVICE, 0)
    driver.fill(1, 0, 0, 0)
    assert bindings.calls == []


@pytest.mark.parametrize("failing", [False, True])
def test_the_threads_device_stays_what_it_was(driver, bindings, failing):
    bindings.current = 1
    if failing:
        bindings.results["hipMalloc"] = (Status.memory, None)
        with pytest.raises(DeviceMemoryError):
            driver.allocate(0, 4096)
    else:
        driver.allocate(0, 4096)
    assert [call for call in bindings.calls if call[0] == "hipSetDevice"] == [("hipSetDevice", 0), ("hipSetDevice", 1)]


@pytest.mark.parametrize("handle", [0, 1])
def test_a_null_stream_is_its_devices_own(driver, bindings, handle):
    """By its handle the runtime takes it for the null stream of the thread's current device."""
    queued = []

    def note(call, position):
        return lambda *arguments: queued.append((call, arguments[position], bindings.current)) or (Status.success,)

    # Where each call has its stream.
    calls = {
        "hipEventRecord": 1,
        "hipStreamWaitEvent": 0,
        "hipStreamSynchronize": 0,
        "hipMemcpyAsync": 4,
        "hipMemsetAsync": 3,
    }
    for call, position in calls.items():
        setattr(bindings, call, note(call, position))
    addresses = itertools.count(0x1000, 0x1000)
    bindings.hipMalloc = lambda _: (Status.success, next(addresses))
    driver.kind = "hip"
    device = Device(driver, 1)
    null, stream = device.foreign_stream(handle), device.create_stream()
    buffer = device.allocate(4, stream=null)
    buffer.fill(0, stream=null)
    buffer.copy_from(device.allocate(4, stream=stream), stream=null)
    null.wait(stream)
    null.wait(stream.record())
    stream.wait(null)
    null.synchronize()
    null.close()
    assert {call for call, which, _ in queued if which == handle} == set(calls)
    assert {current for _, which, current in queued if which == handle} == {1}
    assert bindings.current == 0


def test_streams_do_not_synchronise_with_the_null_stream_and_events_take_no_time(driver, bindings):
    driver.create_stream(0)
    driver.create_event(0)
    assert bindings.calls == [("hipStreamCreateWithFlags", 1), ("hipEventCreateWithFlags", 2)]
