"""What AMD's hip-python reads from the simulated device."""

import json

from rocm.bindings import hip

PROPERTIES = [
    *("name", "gcnArchName", "warpSize", "totalGlobalMem", "multiProcessorCount", "maxThreadsPerBlock"),
    *("major", "minor", "sharedMemPerBlock", "sharedMemPerBlockOptin", "maxThreadsPerMultiProcessor"),
    *("l2CacheSize", "memoryPoolsSupported", "maxSharedMemoryPerMultiProcessor", "clockInstructionRate"),
    *("isLargeBar", "asicRevision", "surfaceAlignment"),
]


def called(function: str, *arguments: object) -> object:
    status, *values = getattr(hip, function)(*arguments)
    assert status == hip.hipError_t.hipSuccess, f"{function}: {status}"
    return values[0] if values else None


properties = called("hipGetDeviceProperties", 0)
errors = {error.name: hip.hipGetErrorName(error)[1] for error in hip.hipError_t}
stream = called("hipStreamCreateWithFlags", 1)
pointer = called("hipMalloc", 64)
host = bytearray(b"\1" * 64)
called("hipMemsetAsync", pointer, 7, 64, stream)
called("hipMemcpyAsync", host, pointer, 64, hip.hipMemcpyKind.hipMemcpyDeviceToHost, stream)
called("hipStreamSynchronize", stream)
called("hipFree", pointer)
called("hipStreamDestroy", stream)
text = {
    "properties": {name: getattr(properties, name) for name in PROPERTIES},
    "errors": errors,
    "copied": host.count(7),
}
print(json.dumps(text, default=lambda value: value.decode() if isinstance(value, bytes) else str(value)))
