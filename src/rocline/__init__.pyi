from rocline import custom_ops as custom_ops
from rocline import export as export
from rocline import runtime as runtime
from rocline.errors import DeviceError as DeviceError
from rocline.errors import DeviceMemoryError as DeviceMemoryError
from rocline.errors import ExportError as ExportError
from rocline.errors import InputError as InputError
from rocline.errors import ModelError as ModelError
from rocline.errors import ParityError as ParityError
from rocline.errors import ProviderError as ProviderError
from rocline.errors import RoclineError as RoclineError
from rocline.runtime.embedder import Embedder as Embedder
from rocline.runtime.generator import Generator as Generator
from rocline.runtime.session import Session as Session

__version__: str
__all__: list[str]
