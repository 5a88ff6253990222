"""NVIDIA GPUs through cuda-bindings."""

from rocline.errors import DeviceError
from rocline.runtime.devices.gpu import GpuDriver


class CudaDriver(GpuDriver):
    """CUDA's runtime in this process; it works in each device's primary context, as ONNX Runtime and PyTorch do.

    Raises:
        DeviceError: cuda-bindings is not installed.
    """

    kind = "cuda"
    dlpack_type = 2

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise DeviceError(f"cuda-bindings cannot be imported ({error}): run pip install 'rocline[cuda]'") from None
        super().__init__(runtime, "cuda", pinned=("HostAlloc", "FreeHost"))
