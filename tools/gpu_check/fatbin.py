"""Leaves in a CUDA library only the machine code that one kind of card runs.

A library made by nvcc holds its kernels many times over, once a kind of card.  They lie in the ELF
section `.nv_fatbin`: containers, one a compiled file, each with entries of machine code (cubins) or
of PTX.  Here the payload of every entry that the given card would not pick becomes zeros: nothing
moves, so that headers, tables and the addresses that the code holds stay true, and an archive
compresses the zeros to nothing.

Layout of a container: magic, version (u16), size of this header (u16), size of what follows (u64).
Of an entry: kind (u16: 1 PTX, 2 cubin), version (u16), size of its header (u32), size of the
payload (u64), ..., at byte 28 the card (u32: 90 for sm_90 and sm_90a).  These are observations of
libraries made by CUDA 12 and 13, cross-checked with what `cuobjdump --list-elf` counts; NVIDIA
documents no format, and whatever does not look like it is left alone.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator

from attrs import define, field, frozen

MAGIC = 0xBA55ED50
PTX, CUBIN = 1, 2
SECTIONS = (".nv_fatbin", "__nv_relfatbin")

_CONTAINER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQ")
_ARCH = struct.Struct("<I")
_ARCH_AT = 28
_LEAST_ENTRY_HEADER = _ARCH_AT + _ARCH.size
_ALIGNMENT = 8


@frozen
class Section:
    """A section of an ELF file."""

    name: str
    offset: int
    size: int


@frozen
class Entry:
    """Machine code or PTX for one kind of card."""

    kind: int
    arch: int
    """Compute capability times ten."""
    start: int
    """First byte of the payload in the file."""
    size: int


@define
class Pruned:
    """What became of a library."""

    kept: Counter[tuple[int, int]] = field(factory=Counter)
    """Bytes of payload by (kind, card)."""
    dropped: Counter[tuple[int, int]] = field(factory=Counter)
    without: int = 0
    """Containers that have nothing for this card."""


def sections(data: bytes | bytearray | memoryview) -> list[Section]:
    """The section table of a 64-bit little-endian ELF file.  Raises ValueError for another."""
    if bytes(data[:6]) != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    rows = [struct.unpack_from("<IIQQQQ", data, table + index * size) for index in range(count)]
    strings = rows[names][4]
    found = []
    for name, kind, _, _, offset, length in rows:
        end = bytes(data[strings + name : strings + name + 64]).split(b"\0")[0]
        if kind != 8:  # a section without bytes in the file
            found.append(Section(end.decode(errors="replace"), offset, length))
    return found


def containers(data: bytes | bytearray | memoryview) -> Iterator[list[Entry]]:
    """The entries of every container in a library."""
    for section in sorted(sections(data), key=lambda section: section.offset):
        if section.name in SECTIONS:
            yield from _containers_in(data, section.offset, section.offset + section.size)


def _containers_in(
    data: bytes | bytearray | memoryview, start: int, end: int
) -> Iterator[list[Entry]]:
    position = start
    while position + _CONTAINER.size <= end:
        magic, _, header, size = _CONTAINER.unpack_from(data, position)
        stop = position + header + size
        if magic != MAGIC or stop > end:
            position += _ALIGNMENT
            continue
        yield list(_entries_in(data, position + header, stop))
        position = stop + (-stop) % _ALIGNMENT


def _entries_in(data: bytes | bytearray | memoryview, position: int, end: int) -> Iterator[Entry]:
    while position + _LEAST_ENTRY_HEADER <= end:
        kind, _, header, size = _ENTRY.unpack_from(data, position)
        if kind not in (PTX, CUBIN) or header < _LEAST_ENTRY_HEADER:
            raise ValueError(f"an entry of an unknown kind at byte {position}")
        if position + header + size > end:
            raise ValueError(f"an entry reaches over its container at byte {position}")
        (arch,) = _ARCH.unpack_from(data, position + _ARCH_AT)
        yield Entry(kind, arch, position + header, size)
        position += header + size


def chosen(entries: list[Entry], arch: int, *, ptx: bool = False) -> list[Entry]:
    """What a card of this kind may pick from a container.

    The machine code of the newest kind that is not newer than the card, within its generation
    (code for 8.0 runs on 8.9, none of them on 9.0); failing that, with `ptx`, the newest PTX that
    is not newer.
    """
    fits = [e.arch for e in entries if e.kind == CUBIN and arch // 10 * 10 <= e.arch <= arch]
    if fits:
        return [e for e in entries if e.kind == CUBIN and e.arch == max(fits)]
    older = [e.arch for e in entries if e.kind == PTX and e.arch <= arch] if ptx else []
    return [e for e in entries if e.kind == PTX and e.arch == max(older)] if older else []


def prune(data: bytearray, arch: int, *, ptx: bool = False) -> Pruned:
    """Zero in place what a card of this kind would not pick.  Raises ValueError."""
    report = Pruned()
    for entries in containers(data):
        keep = chosen(entries, arch, ptx=ptx)
        report.without += not keep
        for entry in entries:
            if entry in keep:
                report.kept[entry.kind, entry.arch] += entry.size
            else:
                report.dropped[entry.kind, entry.arch] += entry.size
                data[entry.start : entry.start + entry.size] = bytes(entry.size)
    return report


def verify(original: bytes, pruned: bytes | bytearray, arch: int, *, ptx: bool = False) -> int:
    """Raise ValueError unless pruning did what it says; returns the payloads that were kept.

    Every byte is what it was, but for the payloads that are not chosen, and these are zeros.
    """
    if len(original) != len(pruned):
        raise ValueError("the length has changed")
    before, after = memoryview(original), memoryview(pruned)
    kept, position = 0, 0
    for entries in containers(original):
        keep = chosen(entries, arch, ptx=ptx)
        kept += len(keep)
        for entry in entries:
            if entry in keep:
                continue
            if before[position : entry.start] != after[position : entry.start]:
                raise ValueError(f"a byte between {position} and {entry.start} has changed")
            position = entry.start + entry.size
            if any(after[entry.start : position]):
                raise ValueError(f"the payload at byte {entry.start} is not all zeros")
    if before[position:] != after[position:]:
        raise ValueError(f"a byte after {position} has changed")
    return kept
