"""What each target can run, and that the committed kernel lists are what the script makes from the wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from rocline.errors import ExportError
from rocline.export import targets
from rocline.export.targets import kernels

LIBRARIES = Path(onnxruntime.__file__).parent / "capi"
ROCM_LIBRARY = LIBRARIES / "libonnxruntime_providers_rocm.so"
CPU_LIBRARY = LIBRARIES / "onnxruntime_pybind11_state.so"
DATA = Path(targets.__file__).parent


@pytest.mark.parametrize(("provider", "library"), [("rocm", ROCM_LIBRARY), ("cpu", CPU_LIBRARY)])
def test_committed_list_is_what_the_script_makes(provider, library):
    committed = (DATA / f"{provider}_kernels.txt").read_text().splitlines()
    assert kernels.read_kernels(library, provider) == committed
    assert len(committed) > 300


def test_script_reads_a_wheel(tmp_path):
    wheel = tmp_path / "onnxruntime-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(CPU_LIBRARY, "onnxruntime/capi/libonnxruntime.so.1.0")
        archive.writestr("onnxruntime/__init__.py", "")
    ran = subprocess.run(
        [sys.executable, "-m", "rocline.export.targets.kernels", wheel, "--provider", "cpu"],
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == (DATA / "cpu_kernels.txt").read_text()


def test_script_refuses_a_library_without_names(tmp_path):
    library = tmp_path / "libstripped.so"
    library.write_bytes(b"\x7fELF and nothing else")
    with pytest.raises(ExportError, match=r"libstripped.so: no kernel names of provider 'rocm'"):
        kernels.read_kernels(library, "rocm")


def test_names_become_tidy_lines():
    names = [
        "Add_kOnnxDomain_ver13_13_BFloat16",
        "Add_kOnnxDomain_ver13_13_float",
        "Add_kOnnxDomain_ver14_int32_t",
        "OneHot_kOnnxDomain_ver11_int64_t_MLFloat16_int64_t",
        "Where_kOnnxDomain_ver16_double_t",
        "BeamSearch_kMSDomain_ver1",
        "Scaler_kMLDomain_ver1_float",
    ]
    assert kernels.tidy(names) == [
        "ai.onnx Add 13-13 bfloat16 float32",
        "ai.onnx Add 14- int32",
        "ai.onnx OneHot 11- int64/float16/int64",
        "ai.onnx Where 16- float64",
        "com.microsoft BeamSearch 1-",
    ]


def test_definitions_of_an_installed_onnxruntime_become_tidy_lines():
    def definition(op_name, versions, types, domain="", provider="CUDAExecutionProvider"):
        return SimpleNamespace(
            op_name=op_name, domain=domain, provider=provider, version_range=versions, type_constraints=types
        )

    definitions = [
        definition("Gather", (11, 12), {"T": ["tensor(bfloat16)", "seq(tensor(float))"], "Tind": ["tensor(int64)"]}),
        definition("Cast", (13, 2**31 - 1), {"T1": ["tensor(float)"], "T2": ["tensor(double)"]}),
        definition("Gelu", (1, 2**31 - 1), {"T": ["tensor(float16)"]}, domain="com.microsoft"),
        definition("Gelu", (1, 2**31 - 1), {"T": ["tensor(float)"]}, domain="com.microsoft"),
        definition("Scaler", (1, 1), {}, domain="ai.onnx.ml"),
        definition("Add", (13, 13), {"T": ["tensor(float)"]}, provider="CPUExecutionProvider"),
    ]
    assert kernels.installed_kernels("cuda", definitions) == [
        "ai.onnx Cast 13- float32 float64",
        "ai.onnx Gather 11-12 bfloat16",
        "com.microsoft Gelu 1- float16 float32",
    ]
    with pytest.raises(ExportError, match=r"onnxruntime: no kernels of provider 'rocm'"):
        kernels.installed_kernels("rocm", definitions)


def test_unknown_type_in_a_name_is_an_error():
    with pytest.raises(ExportError, match="kernel 'Add_kOnnxDomain_ver14_Quaternion': expected OPERATOR"):
        kernels.tidy(["Add_kOnnxDomain_ver14_Quaternion"])


@pytest.mark.parametrize(
    ("target", "operator", "runs"),
    [
        ("rocm", ("MatMul", "bf16"), True),
        ("rocm", ("Reshape", "bf16"), True),
        ("rocm", ("Conv", "bf16"), False),
        ("rocm", ("Pow", "bf16"), False),
        ("rocm", ("Pow", "fp16"), True),
        ("rocm", ("Attention", "fp16", "com.microsoft"), True),
        ("rocm", ("Attention", "bf16", "com.microsoft"), False),
        ("rocm", ("MultiHeadAttention", "fp32", "com.microsoft"), False),
        ("rocm", ("GroupQueryAttention", "fp16", "com.microsoft"), False),
        ("rocm", ("RotaryEmbedding", "fp16", "com.microsoft"), False),
        ("rocm", ("AddScale", "bf16", "rocline"), True),
        ("cpu", ("MatMul", "fp32"), True),
        ("cpu", ("MatMul", "fp16"), True),
        ("cpu", ("MatMul", "bf16"), False),
        ("cpu", ("NoSuchOperator", "fp32"), False),
        ("cuda", ("MatMul", "bf16"), True),
        ("cuda", ("Pow", "bf16"), True),
        ("cuda", ("RotaryEmbedding", "fp16", "com.microsoft"), True),
        ("cuda", ("NoSuchOperator", "fp32"), False),
        ("migraphx", ("MatMul", "fp16"), True),
        ("migraphx", ("CachedAttention", "fp16", "rocline"), False),
        ("portable", ("CachedAttention", "fp32", "rocline"), False),
        ("portable", ("SkipLayerNormalization", "fp32", "com.microsoft"), False),
    ],
)
def test_runs(target, operator, runs):
    assert targets.load(target).runs(*operator) is runs


def test_a_kernel_serves_the_versions_it_names():
    rocm = targets.load("rocm")
    assert rocm.runs("Add", "bf16", version=13)
    assert not rocm.runs("Add", "bf16", version=7)
    # Registered from version 11 on, with no end: ONNX Runtime does not give it to the operator of version 22.
    assert rocm.runs("Conv", "fp16", version=11)
    assert not rocm.runs("Conv", "fp16", version=22)


def test_every_target_loads_and_agrees_with_the_pinned_runtime():
    assert targets.available() == ["cpu", "cuda", "migraphx", "portable", "rocm"]
    for name in targets.available():
        target = targets.load(name)
        assert (target.name, target.max_ir_version, target.max_opset) == (name, 10, 22)
        assert set(target.dtypes) <= set(targets.DTYPES)


@pytest.mark.parametrize(
    ("operator", "types", "expected"),
    [
        (("Add", "", 14), {"int64"}, True),
        (("Erf", "", 13), {"int8"}, False),
        (("LessOrEqual", "", 16), {"float16", "bool"}, True),
        (("Conv", "", 11), {"bfloat16"}, False),
        (("Reshape", "", 14), {"float16", "int64"}, True),
        (("SampleToken", "rocline", None), {"float16", "int64"}, True),
        (("RotaryEmbedding", "com.microsoft", None), {"float16"}, False),
    ],
)
def test_kernels_of_nodes(operator, types, expected):
    op_type, domain, version = operator
    assert targets.load("rocm").has_kernel(op_type, frozenset(types), domain, version) is expected


def test_unknown_target():
    with pytest.raises(ExportError, match=r"target 'tpu': expected one of cpu, cuda, migraphx, portable, rocm"):
        targets.load("tpu")
