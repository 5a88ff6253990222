"""A GPU driver without a GPU: host memory that pretends not to be, streams that lag until waited for, and a log."""

import itertools
from collections import defaultdict

from rocline.errors import DeviceError, DeviceMemoryError
from rocline.runtime.devices.device import Device
from rocline.runtime.devices.host import HostDriver

HIP, CUDA = ("hip", 10), ("cuda", 2)


class Marker:
    """Where an event was recorded, in a queue."""

    def __init__(self, stream):
        self.stream = stream

    def __call__(self):
        pass


class FakeDriver(HostDriver):
    """Queues work by stream; an event or stream that is waited for does what it has to, in order.

    Attributes:
        log: each call that orders or allocates, as a tuple of its name and its streams, events or sizes.
        live: what was created and not destroyed, by kind.
        capacity: bytes of memory that it has.
        failing: a call that raises DeviceError, and after how many calls.
    """

    host_memory = False

    def __init__(self, kind=HIP, devices=1, capacity=1 << 30):
        super().__init__()
        self.kind, self.dlpack_type = kind
        self.devices, self.capacity = devices, capacity
        self.log, self.live, self.failing = [], defaultdict(dict), {}
        self._handles = itertools.count(0x1000, 0x10)
        self._queues, self._recorded = defaultdict(list), {}

    def device(self, device_id=0, **options):
        return Device(self, device_id, **options)

    def logged(self, *names):
        """The logged calls of these names, and forgets the log."""
        found = [entry for entry in self.log if entry[0] in names]
        self.log.clear()
        return found

    def leaks(self):
        return {kind: live for kind, live in self.live.items() if live}

    def _enter(self, call, *details):
        self.log.append((call, *details))
        left = self.failing.get(call)
        if left is not None:
            self.failing[call] = left - 1
            if left <= 0:
                raise DeviceError(f"{call}: told to fail")

    def _create(self, kind, value=0):
        handle = next(self._handles)
        self.live[kind][handle] = value
        return handle

    def count(self):
        return self.devices

    def allocate(self, device_id, nbytes):
        self._enter("allocate", nbytes)
        if sum(self.live["memory"].values()) + nbytes > self.capacity:
            raise DeviceMemoryError(f"allocate: out of memory; asked {nbytes:,} bytes")
        pointer = super().allocate(device_id, nbytes)
        self.live["memory"][pointer] = nbytes
        return pointer

    def free(self, device_id, pointer):
        self._enter("free", self.live["memory"][pointer])
        del self.live["memory"][pointer]
        super().free(device_id, pointer)

    def allocate_pinned(self, device_id, nbytes):
        self._enter("allocate_pinned", nbytes)
        pointer = super().allocate(device_id, nbytes)
        self.live["pinned"][pointer] = nbytes
        return pointer

    def free_pinned(self, device_id, pointer):
        self._enter("free_pinned", self.live["pinned"][pointer])
        del self.live["pinned"][pointer]
        super().free(device_id, pointer)

    def create_stream(self, device_id):
        self._enter("create_stream")
        return self._create("streams")

    def destroy_stream(self, stream):
        self._enter("destroy_stream", stream)
        work = [item for item in self._queues[stream] if not isinstance(item, Marker)]
        assert not work, "a stream was destroyed with work left"
        del self.live["streams"][stream]

    def synchronize_stream(self, stream):
        self._enter("synchronize_stream", stream)
        self._drain(stream)

    def synchronize_device(self, device_id):
        self._enter("synchronize_device")
        for stream in list(self._queues):
            self._drain(stream)

    def create_event(self, device_id):
        self._enter("create_event")
        return self._create("events")

    def destroy_event(self, event):
        self._enter("destroy_event", event)
        del self.live["events"][event]

    def record_event(self, event, stream):
        self._enter("record", stream)
        marker = self._recorded[event] = Marker(stream)
        self._queues[stream].append(marker)

    def wait_event(self, stream, event):
        marker = self._recorded.get(event)
        self._enter("wait", stream, marker and marker.stream)
        self._queues[stream].append(lambda: self._reach(marker))

    def event_done(self, event):
        marker = self._recorded.get(event)
        return marker is None or marker not in self._queues[marker.stream]

    def synchronize_event(self, event):
        self._enter("synchronize_event")
        self._reach(self._recorded.get(event))

    def copy(self, target, source, nbytes, direction, stream):
        self._enter("copy", direction.name, nbytes, stream)
        self._queues[stream].append(lambda: HostDriver.copy(self, target, source, nbytes, direction, stream))

    def fill(self, target, byte, nbytes, stream):
        self._enter("fill", nbytes, stream)
        self._queues[stream].append(lambda: HostDriver.fill(self, target, byte, nbytes, stream))

    def _reach(self, marker):
        """Does what a stream has to do until it has passed a marker."""
        if marker is not None:
            queue = self._queues[marker.stream]
            while marker in queue:
                queue.pop(0)()

    def _drain(self, stream):
        queue = self._queues[stream]
        while queue:
            queue.pop(0)()
