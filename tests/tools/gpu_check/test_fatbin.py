"""A library keeps the code of one kind of card, byte for byte, and loses the rest."""

from __future__ import annotations

import struct

import pytest

from gpu_check import fatbin
from gpu_check.fatbin import CUBIN, PTX

TEXT = b"\x90" * 96


def entry(kind: int, arch: int, payload: bytes) -> bytes:
    """As nvcc writes it: a header of 64 bytes, then the payload."""
    header = struct.pack("<HHIQ", kind, 1, 64, len(payload))
    header += bytes(28 - len(header)) + struct.pack("<I", arch)
    return header + bytes(64 - len(header)) + payload


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", fatbin.MAGIC, 1, 16, len(body)) + body


def library(*containers: bytes, section: bytes = b".nv_fatbin") -> bytes:
    """The least ELF file with such a section, some code before it and a symbol behind it."""
    code = b"".join(one + bytes(-len(one) % 8) for one in containers)
    names = b"\0.text\0" + section + b"\0.shstrtab\0"
    text_at = 64
    code_at = text_at + len(TEXT)
    names_at = code_at + len(code)
    table_at = names_at + len(names)
    rows = [
        (0, 0, 0, 0, 0, 0),
        (1, 1, 6, 0, text_at, len(TEXT)),
        (7, 1, 2, 0, code_at, len(code)),
        (8 + len(section), 3, 0, 0, names_at, len(names)),
    ]
    table = b"".join(struct.pack("<IIQQQQ", *row) + bytes(24) for row in rows)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, table_at, 0, 64, 0, 0, 64, 4, 3)
    return header + TEXT + code + names + table


def payload(arch: int, kind: int = CUBIN) -> bytes:
    return bytes((arch * 7 + kind + index) % 251 + 1 for index in range(200))


def full() -> bytes:
    many = [entry(CUBIN, arch, payload(arch)) for arch in (75, 80, 86, 90, 100)]
    return library(
        container(entry(PTX, 80, payload(80, PTX)), *many),
        container(entry(CUBIN, 90, payload(90)), entry(CUBIN, 90, payload(91))),
        container(entry(PTX, 80, payload(80, PTX)), entry(CUBIN, 80, payload(80))),
    )


def test_every_piece_for_the_card_is_kept_byte_for_byte() -> None:
    original = full()
    pruned = bytearray(original)
    report = fatbin.prune(pruned, 90)
    assert len(pruned) == len(original)
    assert report.kept == {(CUBIN, 90): 600}
    assert report.without == 1
    assert pruned.count(payload(90)) == 2
    assert pruned.count(payload(91)) == 1
    for arch in (75, 80, 86, 100):
        assert original.count(payload(arch)) > 0
        assert pruned.count(payload(arch)) == 0
    assert pruned.count(payload(80, PTX)) == 0
    assert fatbin.verify(original, pruned, 90) == 3


def test_headers_sections_and_code_of_the_host_stay() -> None:
    original = full()
    pruned = bytearray(original)
    fatbin.prune(pruned, 90)
    assert fatbin.sections(pruned) == fatbin.sections(original)
    assert list(fatbin.containers(pruned)) == list(fatbin.containers(original))
    assert TEXT in pruned


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        (90, [(CUBIN, 90)]),
        (89, [(CUBIN, 86)]),  # of its generation, not newer
        (80, [(CUBIN, 80)]),
        (75, [(CUBIN, 75)]),
        (120, []),
        (70, []),
    ],
)
def test_a_card_picks_the_newest_of_its_generation(
    arch: int, expected: list[tuple[int, int]]
) -> None:
    entries = next(iter(fatbin.containers(full())))
    assert [(e.kind, e.arch) for e in fatbin.chosen(entries, arch)] == expected


def test_ptx_stands_in_where_it_is_wanted() -> None:
    last = list(fatbin.containers(full()))[2]
    assert [e.kind for e in fatbin.chosen(last, 90, ptx=True)] == [PTX]
    assert fatbin.chosen(last, 90) == []
    pruned = bytearray(full())
    fatbin.prune(pruned, 90, ptx=True)
    assert pruned.count(payload(80, PTX)) == 1
    assert fatbin.verify(full(), pruned, 90, ptx=True) == 4


def test_what_is_not_a_fatbin_is_left_alone() -> None:
    original = library(container(entry(CUBIN, 75, payload(75))), section=b".rodata\0\0\0")
    pruned = bytearray(original)
    fatbin.prune(pruned, 90)
    assert pruned == original
    with pytest.raises(ValueError, match="not a 64-bit"):
        fatbin.prune(bytearray(b"#!/bin/sh" + bytes(64)), 90)


@pytest.mark.parametrize("where", ["host code", "kept code", "dropped code", "length"])
def test_verification_finds_a_wrong_byte(where: str) -> None:
    original = full()
    pruned = bytearray(original)
    fatbin.prune(pruned, 90)
    entries = [e for entries in fatbin.containers(original) for e in entries]
    if where == "host code":
        pruned[70] ^= 1
    elif where == "kept code":
        pruned[next(e for e in entries if e.arch == 90).start + 9] ^= 1
    elif where == "dropped code":
        pruned[next(e for e in entries if e.arch == 75).start + 9] ^= 1
    else:
        pruned.append(0)
    with pytest.raises(ValueError, match=r"changed|not all zeros"):
        fatbin.verify(original, pruned, 90)


def test_an_entry_that_reaches_out_of_its_container_is_an_error() -> None:
    broken = bytearray(library(container(entry(CUBIN, 90, payload(90)))))
    at = broken.index(struct.pack("<HHI", CUBIN, 1, 64))
    struct.pack_into("<Q", broken, at + 8, 10_000)
    with pytest.raises(ValueError, match="over its container"):
        fatbin.prune(broken, 90)
