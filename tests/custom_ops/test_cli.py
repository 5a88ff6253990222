import pytest
from click.testing import CliRunner
from command_line import rocline

from rocline.custom_ops import cli, code_object


def test_list_names_ops_and_architectures():
    result = CliRunner().invoke(cli.ops, ["list"], catch_exceptions=False)
    assert "AddScale  float32, float16, bfloat16" in result.output
    assert "gfx942" in result.output


def test_build_compiles_one_op_for_one_architecture(tmp_path):
    arguments = ["build", "--arch", "gfx1152", "--op", "add_scale", str(tmp_path)]
    result = CliRunner().invoke(cli.ops, arguments, catch_exceptions=False)
    assert "add_scale: 1 code objects" in result.output
    assert [kernel.name for kernel in code_object.read_kernels(tmp_path / "gfx1152" / "add_scale.co")] == [
        "add_scale_bf16",
        "add_scale_f16",
        "add_scale_f32",
    ]


def test_build_of_an_unknown_op_names_the_known(tmp_path):
    result = CliRunner().invoke(cli.ops, ["build", "--op", "nothing", str(tmp_path)])
    assert "the operators are add_scale" in str(result.exception)


@pytest.mark.parametrize("command", [["build", "--op", "add_scale"], ["table"]])
def test_what_cannot_be_written_is_named(command):
    result = rocline("ops", *command, "/proc/no/out")
    assert (result.status, result.err) == (1, "rocline: /proc/no/out: cannot be written: No such file or directory\n")


def test_cache_shows_and_clears(tmp_path, monkeypatch):
    monkeypatch.setenv("ROCLINE_CACHE", str(tmp_path))
    kept = tmp_path / "add_scale-gfx90c-0123456789abcdef.co"
    kept.write_bytes(b"\x7fELF")
    assert "1 code objects" in CliRunner().invoke(cli.ops, ["cache"], catch_exceptions=False).output
    assert kept.exists()
    CliRunner().invoke(cli.ops, ["cache", "--clear"], catch_exceptions=False)
    assert not kept.exists()
