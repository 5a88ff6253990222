"""A folder that appears whole or not at all: written beside its final place and renamed at the end."""

import contextlib
import errno
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rocline.errors import ExportError
from rocline.runtime.manifest import MANIFEST_NAME

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_destination(out: Path, *, force: bool) -> None:
    """Refuses a destination that must not be written.

    Raises:
        ExportError: ``out`` exists and ``force`` is not set; or it is a link, a file, or a folder that holds something
            other than a model ``rocline export`` wrote, which is never replaced.
    """
    if out.is_symlink():
        raise ExportError(f"{out}: is a symbolic link, expected a new folder; name the folder it points to")
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"{out}: is a file, expected a new folder")
    if not force:
        raise ExportError(f"{out}: exists already; choose another folder or pass --force to replace it")
    if any(out.iterdir()) and not (out / MANIFEST_NAME).is_file():
        raise ExportError(
            f"{out}: holds files but no {MANIFEST_NAME}: not a model folder, so --force will not replace it"
        )


@contextlib.contextmanager
def staged(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside ``out`` that becomes ``out`` when the block ends without an exception.

    With any exception, SIGINT and SIGTERM included, the folder and the parents made for it are removed and what was at
    ``out`` is untouched. With ``force`` the old folder is renamed away, the new one renamed in, the old one deleted.

    Raises:
        ExportError: the destination is refused (`check_destination`), cannot be made, or the disk is full.
    """
    check_destination(out, force=force)
    out = Path(os.path.abspath(out))  # noqa: PTH100  (resolve() would follow links)
    made: list[Path] = []
    folder: Path | None = None
    try:
        with _sigterm_raises(), _plain_disk_errors(out):
            folder = _make_folder(out, made)
            yield folder
            _widen_permissions(folder)
            check_destination(out, force=force)
            _move_in(folder, out)
            made.clear()
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()


def _make_folder(out: Path, made: list[Path]) -> Path:
    """Makes the folder that becomes ``out``; adds the parents that it makes for it to ``made``, outermost first."""
    try:
        for parent in (*reversed(out.parent.parents), out.parent):
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        return Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise
        raise _cannot_be_written(out, error) from error


def _widen_permissions(folder: Path) -> None:
    """mkdtemp makes a private folder: gives it the permissions mkdir would have."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)


def _move_in(folder: Path, out: Path) -> None:
    if not out.exists():
        folder.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    try:
        out.rename(old)
        try:
            folder.rename(out)
        except BaseException:
            old.rename(out)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _plain_disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise ExportError(
                f"{out}: no space to write it ({error.strerror}): free some, or choose another disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EPERM):
            raise _cannot_be_written(out, error) from error
        raise


def _cannot_be_written(out: Path, error: OSError) -> ExportError:
    return ExportError(f"{out}: cannot be written ({error.strerror}: {error.filename})")


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turns SIGTERM into SystemExit, so that what the block made is removed; only the main thread can ask for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
