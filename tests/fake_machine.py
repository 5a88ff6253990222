"""A machine made of files: shared libraries, /dev and /sys as a probe would find them."""

import struct

_ORIGIN = 0x1000


def write_library(path, *, needed=(), soname="", runpath="", rpath="", architectures=None):
    """Writes a 64-bit ELF file with a dynamic section and, with ``architectures``, a HIP fat binary."""
    strings = b"\0"

    def add(text):
        nonlocal strings
        strings += text.encode() + b"\0"
        return len(strings) - len(text) - 1

    entries = [(1, add(name)) for name in needed]
    for tag, text in ((14, soname), (29, runpath), (15, rpath)):
        if text:
            entries.append((tag, add(text)))
    headers = 64 + 2 * 56
    dynamic_size = 16 * (len(entries) + 3)
    table = headers + dynamic_size
    # The string table's address is not its place in the file: a reader must go through the segments.
    entries += [(5, _ORIGIN + table), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in entries)
    body = dynamic + strings
    sections, section_table = b"", 0
    if architectures is not None:
        bundle = fat_binary(architectures)
        names = b"\0.hip_fatbin\0.shstrtab\0"
        at = headers + len(body)
        rows = [(0, 0, 0), (1, at, len(bundle)), (13, at + len(bundle), len(names))]
        sections = bundle + names
        section_table = at + len(sections)
        sections += b"".join(struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, place, size, 0, 0, 1, 0)
                             for name, place, size in rows)  # fmt: skip
    end = headers + len(body) + len(sections)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, section_table, 0, 64, 56, 2, 64, 3 * bool(sections), 2)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, _ORIGIN, _ORIGIN, end, end, 0x1000)
    section = struct.pack("<IIQQQQQQ", 2, 6, headers, _ORIGIN + headers, 0, dynamic_size, dynamic_size, 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + load + section + body + sections)
    return path


def fat_binary(architectures):
    """Returns a Clang offload bundle with empty code objects."""
    targets = ["host-x86_64-unknown-linux-gnu-", *(f"hipv4-amdgcn-amd-amdhsa--{name}" for name in architectures)]
    entries = b"".join(struct.pack("<QQQ", 0, 0, len(target)) + target.encode() for target in targets)
    return b"__CLANG_OFFLOAD_BUNDLE__" + struct.pack("<Q", len(targets)) + entries


def write_loader_cache(path, libraries, flags=0x303):
    """Writes an ld.so.cache that maps names to paths; the flags say x86-64 unless told otherwise."""
    strings, entries = b"", b""
    start = 48 + 24 * len(libraries)
    for name, file in libraries.items():
        key = start + len(strings)
        strings += name.encode() + b"\0"
        value = start + len(strings)
        strings += file.encode() + b"\0"
        entries += struct.pack("<iIIIQ", flags, key, value, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = b"glibc-ld.so.cache1.1" + struct.pack("<II", len(libraries), len(strings)) + bytes(20)
    path.write_bytes(header + entries + strings)


def add_amd_gpus(root, *versions):
    """Adds /dev/kfd and a CPU node, then one GPU node for each gfx_target_version."""
    (root / "dev").mkdir(parents=True, exist_ok=True)
    (root / "dev/kfd").touch()
    for number, version in enumerate((0, *versions)):
        node = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
        node.mkdir(parents=True)
        (node / "properties").write_text(f"cpu_cores_count 0\ngfx_target_version {version}\nvendor_id 4098\n")
