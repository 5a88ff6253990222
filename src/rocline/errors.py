"""The exceptions rocline raises; each message is one line that names the thing, what it was and what was expected.

RoclineError
├── ModelError      a model file, folder or manifest cannot be used
├── InputError      a tensor, prompt or option given by the caller does not fit
├── ProviderError   an execution provider cannot be used, or strict mode refused a fallback
├── ExportError     a source cannot be exported
│   └── ParityError     the exported model does not give PyTorch's numbers
└── DeviceError     a device, stream or buffer operation failed
    └── DeviceMemoryError   a device has not enough memory
"""


class RoclineError(Exception):
    """Base of every error that rocline raises on purpose."""


class ModelError(RoclineError):
    """A model file, model folder or manifest is missing, damaged or not understood."""


class InputError(RoclineError):
    """An input or option given by the caller has the wrong name, dtype, shape or value."""


class ProviderError(RoclineError):
    """An execution provider is unknown, misconfigured, or could not be used where ``strict`` demands it."""


class ExportError(RoclineError):
    """A source is not a model rocline can export, or the export failed."""


class ParityError(ExportError):
    """The exported model's outputs differ from PyTorch's by more than the bound."""


class DeviceError(RoclineError):
    """A device, stream, event or buffer operation failed."""


class DeviceMemoryError(DeviceError):
    """A device has not enough memory, or a pool's limit is reached."""
