"""Which shared libraries the dynamic loader would find, asked before anything is loaded (ld.so(8))."""

import contextlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rocline.runtime.elf import Dynamic, ElfError, read_dynamic

_CACHE_MAGIC = b"glibc-ld.so.cache1.1"
# x86-64 and AArch64: a cache holds the libraries of every processor that the machine can run.
_64_BIT = (0x0300, 0x0A00)
_DEFAULT_FOLDERS = ("/lib", "/usr/lib", "/lib64", "/usr/lib64")


@dataclass(frozen=True)
class Missing:
    """A library that the loader would not find.

    Attributes:
        name: the name asked for (DT_NEEDED).
        needed_by: file name of the library that asks for it.
        others: files of the same library in other versions, where the loader looks.
    """

    name: str
    needed_by: str
    others: tuple[Path, ...]


@dataclass
class Loader:
    """The loader's view of a machine.

    Attributes:
        root: folder that stands for ``/``.
        environ: the environment; ``LD_LIBRARY_PATH`` is read.
        maps: the list of files mapped into this process: what is loaded already is not looked for.
    """

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    maps: Path = Path("/proc/self/maps")

    def __post_init__(self) -> None:
        self._cache = _read_cache(self.root / "etc/ld.so.cache")
        self._loaded = _loaded_files(self.maps)
        path = self.environ.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":")
        self._path = tuple(self._place(folder) for folder in path if folder)

    def missing(self, library: Path) -> list[Missing]:
        """Returns what ``library``, and all it needs in turn, would not find, nearest first."""
        missing: list[Missing] = []
        seen: set[str] = set()
        waiting = [library]
        while waiting:
            current = waiting.pop(0)
            try:
                dynamic = read_dynamic(current)
            except ElfError:
                continue
            for name in dynamic.needed:
                if name in seen:
                    continue
                seen.add(name)
                if name in self._loaded:
                    continue
                found = self._find(name, dynamic)
                if found is not None:
                    waiting.append(found)
                else:
                    missing.append(
                        Missing(name, current.name, self.versions(name.partition(".so")[0] + ".so", dynamic))
                    )
        return missing

    def resolve(self, name: str, library: Path) -> Path | None:
        """Returns the file that the loader gives to ``library`` for its DT_NEEDED entry ``name``; None if none.

        Raises:
            ElfError: ``library`` cannot be read.
        """
        return self._loaded.get(name) or self._find(name, read_dynamic(library))

    def _place(self, path: str) -> Path:
        return self.root / path.lstrip("/") if path.startswith("/") else Path(path)

    def _folders(self, dynamic: Dynamic) -> list[Path]:
        own = [Path(folder) if Path(folder).is_relative_to(self.root) else self._place(folder)
               for folder in dynamic.search]  # fmt: skip
        return [*self._path, *own, *map(self._place, _DEFAULT_FOLDERS)]

    def _find(self, name: str, dynamic: Dynamic) -> Path | None:
        places = [folder / name for folder in self._folders(dynamic)]
        if name in self._cache:
            places.append(self._place(self._cache[name]))
        return next((place for place in places if place.is_file()), None)

    def versions(self, stem: str, dynamic: Dynamic | None = None) -> tuple[Path, ...]:
        """Returns every ``stem.VERSION`` file in the folders that the loader looks in, those of a library included."""
        folders = self._folders(dynamic or Dynamic((), "", ("/opt/rocm/lib",)))
        places = [path for folder in folders for path in folder.glob(f"{stem}.*")]
        places += [self._place(path) for key, path in self._cache.items() if key.startswith(f"{stem}.")]
        return tuple(sorted({place for place in places if place.is_file()}))


def _read_cache(path: Path) -> dict[str, str]:
    """Returns path by library name from the loader's cache (glibc's dl-cache.h, 64-bit entries of 24 bytes)."""
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    start = data.find(_CACHE_MAGIC)
    if start < 0:
        return {}
    count = struct.unpack_from("<I", data, start + 20)[0]
    entries: dict[str, str] = {}
    for index in range(count):
        flags, key, value = struct.unpack_from("<iII", data, start + 48 + 24 * index)
        if flags & 0xFF00 not in _64_BIT:
            continue
        name, file = (data[at : data.index(b"\0", at)].decode() for at in (start + key, start + value))
        entries.setdefault(name, file)
    return entries


def _loaded_files(maps: Path) -> dict[str, Path]:
    """Returns the shared libraries of this process by the names under which the loader knows them."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return {}
    paths = {"/" + line.partition("/")[2] for line in lines if ".so" in line}
    files: dict[str, Path] = {}
    for path in sorted(map(Path, paths)):
        with contextlib.suppress(ElfError):
            files.setdefault(read_dynamic(path).soname, path)
    files.pop("", None)
    return files
