"""Reads what a code object says about its kernels: registers, memory, wave size.

The format stands in LLVM's "AMDGPU usage", section "Code object metadata": MessagePack in an ELF note of type 32.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocline.errors import RoclineError

_NOTE_SECTION = 7
_METADATA = 32


@dataclass(frozen=True)
class KernelInfo:
    """One kernel of a code object.

    Attributes:
        name: of the entry point.
        vgprs, agprs, sgprs: registers a lane, accumulator registers a lane, registers a wave.
        lds, scratch: bytes a work-group and bytes a lane; ``lds`` without what the launch adds.
        vgpr_spills, sgpr_spills: registers that did not fit.
        wave: lanes.
        threads: most a work-group may have.
    """

    name: str
    vgprs: int
    agprs: int
    sgprs: int
    lds: int
    scratch: int
    vgpr_spills: int
    sgpr_spills: int
    wave: int
    threads: int


def read_kernels(path: Path) -> list[KernelInfo]:
    """The kernels of a code object file, by name.

    Raises:
        RoclineError: if the file is no AMD code object.
    """
    data = path.read_bytes()
    try:
        metadata = next(_unpack(note, 0)[0] for note in _notes(data))
    except (StopIteration, ValueError, struct.error, IndexError) as error:
        raise RoclineError(f"{path}: not an AMD code object, or damaged; build it again") from error
    return sorted((_kernel(entry) for entry in metadata["amdhsa.kernels"]), key=lambda kernel: kernel.name)


def _kernel(entry: dict[str, Any]) -> KernelInfo:
    return KernelInfo(
        name=entry[".name"],
        vgprs=entry[".vgpr_count"],
        agprs=entry.get(".agpr_count", 0),
        sgprs=entry[".sgpr_count"],
        lds=entry[".group_segment_fixed_size"],
        scratch=entry[".private_segment_fixed_size"],
        vgpr_spills=entry[".vgpr_spill_count"],
        sgpr_spills=entry[".sgpr_spill_count"],
        wave=entry[".wavefront_size"],
        threads=entry[".max_flat_workgroup_size"],
    )


def _notes(data: bytes) -> Iterator[bytes]:
    if data[:6] != b"\x7fELF\x02\x01":
        return
    (sections,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    for header in range(sections, sections + size * count, size):
        (kind,) = struct.unpack_from("<I", data, header + 4)
        offset, length = struct.unpack_from("<QQ", data, header + 24)
        if kind == _NOTE_SECTION:
            name_size, text_size, note_type = struct.unpack_from("<III", data, offset)
            start = offset + 12 + -(-name_size // 4) * 4
            if note_type == _METADATA and data[offset + 12 :][:6] == b"AMDGPU" and start + text_size <= offset + length:
                yield data[start : start + text_size]


def _unpack(data: bytes, at: int) -> tuple[Any, int]:
    """One MessagePack value and where the next starts; the types that the metadata uses."""
    tag = data[at]
    at += 1
    if tag < 0x80:
        return tag, at
    if tag >= 0xE0:
        return tag - 0x100, at
    if tag in _SCALARS:
        form, size = _SCALARS[tag]
        return struct.unpack_from(form, data, at)[0], at + size
    if tag in {0xC0, 0xC2, 0xC3}:
        return {0xC0: None, 0xC2: False, 0xC3: True}[tag], at
    if tag < 0xC0:
        kind, count = tag & 0xF0, tag & 0x0F
        if tag >= 0xA0:
            kind, count = 0xA0, tag & 0x1F
    else:
        kind, form, size = _SIZED[tag]
        count = struct.unpack_from(form, data, at)[0]
        at += size
    if kind == 0xA0:
        return data[at : at + count].decode(), at + count
    values = []
    for _ in range(count * 2 if kind == 0x80 else count):
        value, at = _unpack(data, at)
        values.append(value)
    return (dict(zip(values[::2], values[1::2], strict=True)) if kind == 0x80 else values), at


_SCALARS = {
    **{0xCC: (">B", 1), 0xCD: (">H", 2), 0xCE: (">I", 4), 0xCF: (">Q", 8)},
    **{0xD0: (">b", 1), 0xD1: (">h", 2), 0xD2: (">i", 4), 0xD3: (">q", 8)},
    **{0xCA: (">f", 4), 0xCB: (">d", 8)},
}
_SIZED = {
    **{0xD9: (0xA0, ">B", 1), 0xDA: (0xA0, ">H", 2), 0xDB: (0xA0, ">I", 4)},
    **{0xDC: (0x90, ">H", 2), 0xDD: (0x90, ">I", 4), 0xDE: (0x80, ">H", 2), 0xDF: (0x80, ">I", 4)},
}
