import errno
import os
import signal
import stat
from pathlib import Path

import pytest

from rocline.errors import ExportError
from rocline.export.staging import staged
from rocline.runtime.manifest import MANIFEST_NAME


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def model_folder(path, content="old"):
    path.mkdir()
    (path / MANIFEST_NAME).write_text(content)
    return path


def test_the_folder_appears_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with staged(out) as folder:
        (folder / "model.onnx").write_text("new")
        assert folder.parent == out.parent
        assert not out.exists()
    assert tree(tmp_path) == ["deep", "deep/out", "deep/out/model.onnx"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), SystemExit(3)])
def test_a_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), staged(tmp_path / "deep" / "out") as folder:
        (folder / "half").write_text("x")
        raise error
    assert tree(tmp_path) == []


def test_sigterm_leaves_nothing_and_its_handler_is_restored(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as raised, staged(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.code == 128 + signal.SIGTERM
    assert tree(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_force_replaces_a_model_folder_at_the_end(tmp_path):
    out = model_folder(tmp_path / "out")
    with staged(out, force=True) as folder:
        (folder / MANIFEST_NAME).write_text("new")
        assert (out / MANIFEST_NAME).read_text() == "old"
    assert (out / MANIFEST_NAME).read_text() == "new"
    assert tree(tmp_path) == ["out", f"out/{MANIFEST_NAME}"]


def test_a_failure_under_force_keeps_the_old_folder(tmp_path):
    out = model_folder(tmp_path / "out")
    with pytest.raises(ValueError, match="broken"), staged(out, force=True):
        raise ValueError("broken")
    assert tree(tmp_path) == ["out", f"out/{MANIFEST_NAME}"]


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    out = model_folder(tmp_path / "out")
    rename = type(out).rename

    def fail_into_out(self, target):
        if target == out and self.suffix == ".partial":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(self, target)

    monkeypatch.setattr(type(out), "rename", fail_into_out)
    with pytest.raises(ExportError, match="no space"), staged(out, force=True) as folder:
        (folder / MANIFEST_NAME).write_text("new")
    assert (out / MANIFEST_NAME).read_text() == "old"
    assert tree(tmp_path) == ["out", f"out/{MANIFEST_NAME}"]


def test_a_folder_that_appeared_meanwhile_is_not_replaced(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ExportError, match="exists already"), staged(out):
        model_folder(out, "another export's")
    assert (out / MANIFEST_NAME).read_text() == "another export's"
    assert tree(tmp_path) == ["out", f"out/{MANIFEST_NAME}"]


def test_what_must_not_be_written_is_refused(tmp_path):
    existing = model_folder(tmp_path / "existing")
    file = tmp_path / "file"
    file.write_text("x")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    link = tmp_path / "link"
    link.symlink_to(existing)
    before = tree(tmp_path)
    for out, force, message in (
        (existing, False, "exists already; choose another folder or pass --force"),
        (file, True, "is a file, expected a new folder"),
        (other, True, f"holds files but no {MANIFEST_NAME}"),
        (link, True, "is a symbolic link"),
        (file / "out", False, "cannot be written"),
        # Where nothing can be made, even by root.
        (Path("/proc/no/out"), False, r"/proc/no/out: cannot be written \(No such file or directory: /proc/no\)"),
        (tmp_path / "new" / ("x" * 250), False, "File name too long"),
    ):
        with pytest.raises(ExportError, match=message), staged(out, force=force):
            pytest.fail("the block must not run")
    assert tree(tmp_path) == before


def test_force_takes_an_empty_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with staged(out, force=True) as folder:
        (folder / "a").write_text("x")
    assert tree(tmp_path) == ["out", "out/a"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line(tmp_path, number):
    with pytest.raises(ExportError, match="no space to write it"), staged(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise OSError(number, os.strerror(number))
    assert tree(tmp_path) == []
