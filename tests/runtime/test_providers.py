"""Names of providers are resolved in order, or refused."""

import pytest

from rocline.errors import ProviderError
from rocline.runtime.providers import resolve

ROCM, MIGRAPHX, CUDA, CPU = (f"{name}ExecutionProvider" for name in ("ROCM", "MIGraphX", "CUDA", "CPU"))


def names(providers):
    return [row.name for row in providers]


@pytest.mark.parametrize(
    ("built_in", "expected"),
    [
        ([ROCM, CPU], ["rocm", "cpu"]),
        ([CPU], ["rocm", "cpu"]),
        ([MIGRAPHX, CPU], ["migraphx", "cpu"]),
        ([CUDA, CPU], ["cuda", "cpu"]),
        ([MIGRAPHX, ROCM, CPU], ["rocm", "cpu"]),
        (["TensorrtExecutionProvider", CUDA, MIGRAPHX, CPU], ["migraphx", "cuda", "cpu"]),
    ],
)
def test_default_order(built_in, expected):
    assert names(resolve(None, built_in)) == expected


@pytest.mark.parametrize("given", [["cpu", "rocm"], [CPU, ROCM], ["cpu", ROCM]])
def test_both_kinds_of_names(given):
    assert names(resolve(given, [CPU])) == ["cpu", "rocm"]


def test_one_name():
    assert names(resolve("cuda", [CPU])) == ["cuda"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["gpu"], "provider 'gpu': unknown, expected one of rocm, migraphx, cuda, cpu"),
        (["rocm", ROCM], "provider 'ROCMExecutionProvider': given twice"),
        ([], "no provider given"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ProviderError) as caught:
        resolve(given, [CPU])
    assert message in str(caught.value)
