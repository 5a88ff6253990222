"""AMD GPUs through hip-python, on the HIP runtime that ONNX Runtime's provider uses."""

from rocline.runtime.devices import hip_runtime
from rocline.runtime.devices.gpu import GpuDriver


class HipDriver(GpuDriver):
    """HIP in this process.

    Raises:
        DeviceError: see `rocline.runtime.devices.hip_runtime.load`.
    """

    kind = "hip"
    dlpack_type = 10

    def __init__(self) -> None:
        super().__init__(hip_runtime.load(), "hip", pinned=("HostMalloc", "HostFree"))
