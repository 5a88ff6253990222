"""Every kernel is built for every architecture, fits its registers, and stands in docs/kernels.md as it is."""

import subprocess
from pathlib import Path

import pytest

from rocline import custom_ops
from rocline.custom_ops import build, code_object, kernel_table
from rocline.errors import RoclineError

SPECS = custom_ops.specs()
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_no_kernel_spills(spec):
    found = kernel_table.kernels_by_architecture(spec.folder)
    assert tuple(found) == build.ARCHITECTURES
    names = {kernel.name for kernel in found["gfx942"]}
    for architecture, kernels in found.items():
        assert {kernel.name for kernel in kernels} == names, f"{architecture} has other kernels than gfx942"
        wave = 64 if architecture.startswith("gfx9") else 32
        for kernel in kernels:
            what = f"{kernel.name} on {architecture}: {kernel}"
            assert kernel.scratch == 0, what
            assert (kernel.vgpr_spills, kernel.sgpr_spills) == (0, 0), what
            assert kernel.wave == wave, what
            assert kernel.lds <= 64 * 1024, what


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_dtype_has_a_kernel(spec):
    suffixes = {
        name.rsplit("_", 1)[1] for name in (k.name for k in kernel_table.kernels_by_architecture(spec.folder)["gfx942"])
    }
    wanted = {{"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[dtype] for dtype in spec.dtypes}
    assert wanted <= suffixes


def test_the_documented_table_is_the_truth():
    page = ROOT / "docs" / "kernels.md"
    assert page.read_text() == kernel_table.kernel_table(), "run: rocline ops table docs/kernels.md"


def test_every_generic_target_covers_what_it_names():
    members = [member for family in build.GENERIC.values() for member in family]
    assert len(members) == len(set(members))
    # A family's code may not use what one member lacks: those two are no members of gfx9-generic.
    assert set(build.EXACT) - set(members) == {"gfx908", "gfx90a"}


def test_a_spill_is_seen(tmp_path, monkeypatch):
    """The gate fails where it must: a kernel that needs scratch is read as one."""
    folder = tmp_path / "spilling"
    folder.mkdir()
    (folder / "kernel.hip").write_text(
        '#include "kernels/device.h"\n'
        'extern "C" __global__ void spill_f32(const int* at, int* out) {\n'
        "  volatile int array[64];\n"
        "  for (int i = 0; i < 64; ++i) array[i] = at[i];\n"
        "  *out = array[at[64]];\n"
        "}\n"
    )
    out = tmp_path / "spill.co"
    build.compile_code_object(folder / "kernel.hip", "gfx1100", out)
    (kernel,) = code_object.read_kernels(out)
    assert kernel.name == "spill_f32"
    assert kernel.scratch >= 256


def test_a_damaged_object_is_refused(tmp_path):
    path = tmp_path / "gfx942.co"
    path.write_bytes(b"\x7fELF\x02\x01" + bytes(100))
    with pytest.raises(RoclineError, match=r"gfx942\.co: not an AMD code object"):
        code_object.read_kernels(path)


def test_a_missing_object_is_named(tmp_path, monkeypatch):
    (tmp_path / "librocline_ops.so").touch()
    monkeypatch.setenv("ROCLINE_OPS_LIBRARY", str(tmp_path / "librocline_ops.so"))
    with pytest.raises(RoclineError, match="no code object of add_scale for gfx900"):
        kernel_table.kernels_by_architecture("add_scale")


def test_a_source_that_does_not_compile_is_named(tmp_path):
    (tmp_path / "kernel.hip").write_text("this is no kernel")
    with pytest.raises(RoclineError, match=r"kernel\.hip for gfx942: zig failed with status 1:\n.*error:"):
        build.compile_code_object(tmp_path / "kernel.hip", "gfx942", tmp_path / "out.co")


def test_embedded_sources_need_no_headers():
    for folder in build.op_folders():
        text = build.amalgamate(folder / "kernel.hip")
        assert '#include "' not in text
        assert "#pragma once" not in text


def test_amalgamated_source_compiles_alike(tmp_path):
    source = tmp_path / "kernel.hip"
    source.write_text(build.amalgamate(build.FOLDER / "add_scale" / "kernel.hip"))
    build.compile_code_object(source, "gfx90a", tmp_path / "out.co")
    shipped = custom_ops.library_path().parent / "code_objects" / "gfx90a" / "add_scale.co"
    assert code_object.read_kernels(tmp_path / "out.co") == code_object.read_kernels(shipped)


def test_kernels_compile_for_nvidia(tmp_path):
    for folder in build.op_folders():
        out = tmp_path / f"{folder.name}.cubin"
        command = ["nvcc", "-arch=sm_90", "-std=c++17", "-cubin", "-x", "cu", f"-I{build.FOLDER}"]
        try:
            done = subprocess.run(
                [*command, folder / "kernel.hip", "-o", out], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            pytest.skip("no nvcc on this machine")
        assert done.returncode == 0, done.stderr
