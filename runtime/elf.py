"""The dynamic section and the HIP code objects of a shared library, read without loading it (System V ABI, ELF-64)."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 1, 5, 10, 14, 15, 29
_BUNDLE = b"__CLANG_OFFLOAD_BUNDLE__"


# A damaged file ends in any of these: short reads, offsets into nowhere, missing entries.
_MALFORMED = (OSError, struct.error, ValueError, LookupError, OverflowError)


class ElfError(Exception):
    """The file is no 64-bit little-endian ELF file with a dynamic section."""


@dataclass(frozen=True)
class Dynamic:
    """What the dynamic loader reads first.

    Attributes:
        needed: names of the libraries it needs (DT_NEEDED), in order.
        soname: its own name (DT_SONAME), or an empty string.
        search: folders to look in (DT_RUNPATH, else DT_RPATH) with ``$ORIGIN`` replaced.
    """

    needed: tuple[str, ...]
    soname: str
    search: tuple[str, ...]


def read_dynamic(path: Path) -> Dynamic:
    """Reads the dynamic section of ``path``.

    Raises:
        ElfError: the file cannot be read as such.
    """
    try:
        with path.open("rb") as file:
            return _dynamic(file, str(path.resolve().parent))
    except _MALFORMED as error:
        raise ElfError(f"{path}: {error}") from None


def _dynamic(file: BinaryIO, origin: str) -> Dynamic:
    header = file.read(64)
    if header[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    table, size, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
    file.seek(table)
    segments = [struct.unpack("<IIQQQQQQ", file.read(size)[:56]) for _ in range(count)]
    section = next((segment for segment in segments if segment[0] == _PT_DYNAMIC), None)
    if section is None:
        raise ValueError("no dynamic section")
    file.seek(section[2])
    entries = [entry for entry in struct.iter_unpack("<qQ", file.read(section[5] // 16 * 16)) if entry[0]]
    single = dict(entries)
    address = single[_DT_STRTAB]
    places = [
        place + address - start
        for kind, _, place, start, _, length, *_ in segments
        if kind == _PT_LOAD and start <= address < start + length
    ]
    file.seek(places[0])
    strings = file.read(single[_DT_STRSZ])

    def text(at: int) -> str:
        return strings[at : strings.index(b"\0", at)].decode()

    search = single.get(_DT_RUNPATH, single.get(_DT_RPATH))
    folders = text(search).split(":") if search is not None else []
    return Dynamic(
        needed=tuple(text(value) for tag, value in entries if tag == _DT_NEEDED),
        soname=text(single[_DT_SONAME]) if _DT_SONAME in single else "",
        search=tuple(folder.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for folder in folders if folder),
    )


def code_objects(path: Path) -> tuple[str, ...]:
    """Returns the GPU architectures (``gfx90a``, ...) that the library's first HIP fat binary holds code for, sorted.

    Empty where there is no uncompressed fat binary: nothing is known then. The format: Clang's documentation of
    clang-offload-bundler, "Bundled binary file layout".

    Raises:
        ElfError: the file cannot be read as such.
    """
    try:
        with path.open("rb") as file:
            return _code_objects(file)
    except _MALFORMED as error:
        raise ElfError(f"{path}: {error}") from None


def _code_objects(file: BinaryIO) -> tuple[str, ...]:
    header = file.read(64)
    table = struct.unpack_from("<Q", header, 40)[0]
    size, count, names_index = struct.unpack_from("<HHH", header, 58)
    if not table or names_index >= count:
        return ()
    file.seek(table)
    sections = [struct.unpack("<IIQQQQIIQQ", file.read(size)[:64]) for _ in range(count)]
    file.seek(sections[names_index][4])
    names = file.read(sections[names_index][5])
    found = next((row for row in sections if names[row[0] :].startswith(b".hip_fatbin\0")), None)
    if found is None:
        return ()
    file.seek(found[4])
    if file.read(len(_BUNDLE)) != _BUNDLE:
        return ()
    architectures = set()
    for _ in range(struct.unpack("<Q", file.read(8))[0]):
        _, _, length = struct.unpack("<QQQ", file.read(24))
        target = file.read(length).decode()
        if target.startswith("hip"):
            # Target features, as in gfx90a:xnack-, are no part of the architecture's name.
            architectures.add(target.rpartition("--")[2].partition(":")[0])
    return tuple(sorted(architectures))
