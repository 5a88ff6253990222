"""The dynamic symbols of a shared library, with versions (System V ABI, chapter 5; LSB Core, "Symbol Versioning")."""

import struct
from dataclasses import dataclass
from pathlib import Path

_DYNSYM, _VERSIONS, _NEEDS, _DEFINES = 11, 0x6FFFFFFF, 0x6FFFFFFE, 0x6FFFFFFD
_WEAK = 2


@dataclass(frozen=True)
class Symbol:
    """One symbol: ``version`` is empty without one; undefined symbols are wanted from another library."""

    name: str
    version: str
    defined: bool
    weak: bool


def read_symbols(path: Path) -> list[Symbol]:
    """The symbols of a 64-bit little-endian library, in the table's order."""
    data = path.read_bytes()
    table, size, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + size * number) for number in range(count)]

    def section(kind):
        return next((row for row in sections if row[1] == kind), None)

    def text(strings, at):
        start = sections[strings][4] + at
        return data[start : data.index(b"\0", start)].decode()

    versions = {}
    if needs := section(_NEEDS):
        at = needs[4]
        for _ in range(needs[7]):
            _, entries, _, first, following = struct.unpack_from("<HHIII", data, at)
            entry = at + first
            for _ in range(entries):
                _, _, index, name, next_entry = struct.unpack_from("<IHHII", data, entry)
                versions[index] = text(needs[6], name)
                entry += next_entry
            at += following
    if defines := section(_DEFINES):
        at = defines[4]
        for _ in range(defines[7]):
            _, flags, index, _, _, first, following = struct.unpack_from("<HHHHIII", data, at)
            # The first definition, flagged as the base, is the library's own name.
            if not flags & 1:
                versions[index] = text(defines[6], struct.unpack_from("<I", data, at + first)[0])
            at += following
    symbols, indices = section(_DYNSYM), section(_VERSIONS)
    found = []
    for number in range(1, symbols[5] // 24):
        name, info, _, home, _, _ = struct.unpack_from("<IBBHQQ", data, symbols[4] + 24 * number)
        index = struct.unpack_from("<H", data, indices[4] + 2 * number)[0] & 0x7FFF if indices else 0
        found.append(Symbol(text(symbols[6], name), versions.get(index, ""), home != 0, info >> 4 == _WEAK))
    return found
