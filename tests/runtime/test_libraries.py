"""The loader's search, on libraries made of files and on this machine's own."""

import _ctypes
import contextlib
import subprocess
import sys
from pathlib import Path

import fake_machine
import pytest

from rocline.runtime.elf import ElfError, code_objects, read_dynamic
from rocline.runtime.libraries import Loader


def loader(root, **environ):
    return Loader(root, environ, root / "no maps")


def names(missing):
    return [library.name for library in missing]


def test_dynamic_section(tmp_path):
    path = fake_machine.write_library(tmp_path / "lib/a.so", needed=["b.so.1", "c.so"], soname="a.so.2",
                                      runpath="/opt/x:$ORIGIN/../deep:${ORIGIN}:")  # fmt: skip
    dynamic = read_dynamic(path)
    assert (dynamic.needed, dynamic.soname) == (("b.so.1", "c.so"), "a.so.2")
    assert dynamic.search == ("/opt/x", f"{tmp_path}/lib/../deep", f"{tmp_path}/lib")


def test_runpath_hides_rpath(tmp_path):
    path = fake_machine.write_library(tmp_path / "a.so", rpath="/old")
    assert read_dynamic(path).search == ("/old",)
    path = fake_machine.write_library(tmp_path / "b.so", rpath="/old", runpath="/new")
    assert read_dynamic(path).search == ("/new",)


def test_this_interpreter_needs_libc():
    assert any(name.startswith("libc.so") for name in read_dynamic(Path(_ctypes.__file__)).needed)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF\x01\x01" + bytes(80), b"\x7fELF\x02\x01" + bytes(80)])
def test_what_is_no_library(tmp_path, content):
    path = tmp_path / "a.so"
    path.write_bytes(content)
    with pytest.raises(ElfError, match=r"a\.so"):
        read_dynamic(path)


def test_every_cut_of_a_library_is_an_elf_error(tmp_path):
    whole = fake_machine.write_library(tmp_path / "a.so", needed=["b.so"], runpath="/x", architectures=["gfx90a"])
    content = whole.read_bytes()
    for length in range(len(content)):
        whole.write_bytes(content[:length])
        for read in (read_dynamic, code_objects):
            with contextlib.suppress(ElfError):
                read(whole)


def test_code_objects(tmp_path):
    architectures = ["gfx90a:sramecc+:xnack-", "gfx90a:sramecc+:xnack+", "gfx1100", "gfx942"]
    path = fake_machine.write_library(tmp_path / "a.so", architectures=architectures)
    assert code_objects(path) == ("gfx1100", "gfx90a", "gfx942")
    assert code_objects(fake_machine.write_library(tmp_path / "b.so")) == ()


def test_search_order(tmp_path):
    for folder in ("env", "run", "usr/lib", "cached"):
        fake_machine.write_library(tmp_path / folder / "b.so.1", needed=[f"from-{folder.replace('/', '-')}"])
    fake_machine.write_loader_cache(tmp_path / "etc/ld.so.cache", {"b.so.1": "/cached/b.so.1"})
    path = fake_machine.write_library(tmp_path / "a.so", needed=["b.so.1"], runpath="/run")
    # Each b.so.1 needs a library named for where it lies, so what is missing tells which one was found.
    assert names(loader(tmp_path, LD_LIBRARY_PATH="/env").missing(path)) == ["from-env"]
    assert names(loader(tmp_path).missing(path)) == ["from-run"]
    (tmp_path / "run/b.so.1").unlink()
    assert names(loader(tmp_path).missing(path)) == ["from-usr-lib"]
    (tmp_path / "usr/lib/b.so.1").unlink()
    assert names(loader(tmp_path).missing(path)) == ["from-cached"]
    (tmp_path / "cached/b.so.1").unlink()
    assert names(loader(tmp_path).missing(path)) == ["b.so.1"]


def test_a_relative_folder_is_relative_to_the_working_folder(tmp_path, monkeypatch):
    fake_machine.write_library(tmp_path / "here/b.so.1")
    path = fake_machine.write_library(tmp_path / "a.so", needed=["b.so.1"])
    monkeypatch.chdir(tmp_path)
    assert names(loader(tmp_path / "root", LD_LIBRARY_PATH="here").missing(path)) == []


def test_the_cache_of_another_processor_is_not_used(tmp_path):
    fake_machine.write_library(tmp_path / "lib32/b.so.1")
    path = fake_machine.write_library(tmp_path / "a.so", needed=["b.so.1"])
    for flags, expected in ((0x3, ["b.so.1"]), (0x303, [])):
        fake_machine.write_loader_cache(tmp_path / "etc/ld.so.cache", {"b.so.1": "/lib32/b.so.1"}, flags)
        assert names(loader(tmp_path).missing(path)) == expected


def test_missing_in_turn(tmp_path):
    fake_machine.write_library(tmp_path / "usr/lib/b.so", needed=["c.so", "d.so"])
    fake_machine.write_library(tmp_path / "usr/lib/c.so", needed=["b.so", "gone.so"])
    path = fake_machine.write_library(tmp_path / "a.so", needed=["b.so", "gone.so"])
    missing = loader(tmp_path).missing(path)
    assert [(library.name, library.needed_by) for library in missing] == [("gone.so", "a.so"), ("d.so", "b.so")]


def test_other_versions_are_named(tmp_path):
    other = fake_machine.write_library(tmp_path / "usr/lib/libamdhip64.so.5")
    (tmp_path / "usr/lib/libamdhip64.so.5.7").symlink_to("nowhere")
    path = fake_machine.write_library(tmp_path / "a.so", needed=["libamdhip64.so.7"])
    (missing,) = loader(tmp_path).missing(path)
    assert missing.others == (other,)


def test_a_loaded_library_is_not_looked_for(tmp_path):
    loaded = fake_machine.write_library(tmp_path / "wheel/libb-1234.so", soname="libb.so.1")
    (tmp_path / "maps").write_text(f"7f00-7f01 r-xp 0 00:00 1   {loaded}\n7f02-7f03 rw-p 0 00:00 0\n")
    path = fake_machine.write_library(tmp_path / "a.so", needed=["libb.so.1", "libc.so.9"])
    assert names(Loader(tmp_path, {}, tmp_path / "maps").missing(path)) == ["libc.so.9"]


def test_agrees_with_the_loader_of_this_machine():
    """Python's own extension modules load, so nothing that they need may be reported missing."""
    script = (
        "import _ctypes, _ssl, pathlib; from rocline.runtime.libraries import Loader\n"
        "loader = Loader(maps=pathlib.Path('none'))\n"
        "print([m.name for module in (_ctypes, _ssl) for m in loader.missing(pathlib.Path(module.__file__))])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
