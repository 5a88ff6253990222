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
        self._runtime, bindings = hip_runtime.load()
        super().__init__(bindings, "hip", pinned=("HostMalloc", "HostFree"))

    def check(self) -> None:
        """Raises DeviceError if another HIP runtime has come into the process."""
        hip_runtime.check(self._runtime)
