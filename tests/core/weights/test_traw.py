from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.weights.traw import (
    DTYPES,
    EXTENDED_DTYPES,
    Header,
    TrawError,
    decode_header,
    header_of,
    open_file,
    read_file_into,
    write_file,
)
from tests.core.weights.models import CODES, traw

shapes = st.lists(st.integers(0, 6), max_size=4).map(tuple)


@given(dtype=st.sampled_from(sorted(CODES)), shape=shapes)
@settings(max_examples=50, deadline=None)
def test_bytes_are_those_of_the_published_format(dtype: str, shape: tuple[int, ...]) -> None:
    header = header_of(dtype, shape)
    data = bytes(index % 251 for index in range(header.data_bytes))
    file = header.encode() + data
    assert file == traw(dtype, shape, data)
    assert len(file) == header.file_bytes
    assert decode_header(file, file_bytes=len(file), v1_only=True) == header


def test_known_file(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    write_file(path, "float32", (1, 2), struct.pack("<2f", 1.0, -2.0))
    assert path.read_bytes().hex() == (
        "54524157" "01000000" "02000000" "0100000000000000" "0200000000000000"
        "03000000" "0800000000000000" "0000803f" "000000c0"
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [dtype.name for dtype in EXTENDED_DTYPES])
def test_a_reader_of_v1_alone_refuses_our_codes(dtype: str) -> None:
    header = header_of(dtype, (2, 3))
    assert decode_header(header.encode()) == header
    with pytest.raises(TrawError, match="unknown TRAW dtype code"):
        decode_header(header.encode(), v1_only=True)


def test_codes_are_unique() -> None:
    assert len({dtype.code for dtype in DTYPES.values()}) == len(DTYPES)
    assert all(dtype.code > 255 for dtype in EXTENDED_DTYPES)


def test_maps_and_reads_ranges(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    data = bytes(range(120))
    write_file(path, "float16", (6, 10), data)
    header, view = open_file(path)
    assert (header, bytes(view)) == (Header(DTYPES["float16"], (6, 10)), data)
    assert view.readonly
    buffer = bytearray(20)
    read_file_into(path, buffer, offset=40)
    assert buffer == data[40:60]
    with pytest.raises(TrawError, match="lie outside"):
        read_file_into(path, buffer, offset=101)


def test_refuses_to_write_the_wrong_number_of_bytes(tmp_path: Path) -> None:
    with pytest.raises(TrawError, match="3 bytes given for a tensor of 4"):
        write_file(tmp_path / "t.bin", "float16", (2,), b"abc")
    with pytest.raises(TrawError, match="no code for dtype 'int4'"):
        write_file(tmp_path / "t.bin", "int4", (2,), b"abcd")


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [
        (0, b"X", "not a TRAW file"),
        (4, b"\x02", "TRAW version 2"),
        (8, b"\xff\xff\xff\xff", "4294967295 dimensions"),
        (8, b"\x03", "unknown TRAW dtype code|takes .* bytes|ends inside"),
        (12, b"\xff" * 8, "but the header says"),
        (28, b"\x09", "unknown TRAW dtype code 9"),
        (32, b"\x07", "takes 12 bytes, but the header says 7"),
    ],
)
def test_damage_is_refused_with_the_reason(
    tmp_path: Path, position: int, value: bytes, reason: str
) -> None:
    path = tmp_path / "t.bin"
    file = bytearray(traw("float16", (2, 3), bytes(12)))
    file[position : position + len(value)] = value
    path.write_bytes(file)
    for read in (open_file, lambda path: read_file_into(path, bytearray(1))):
        with pytest.raises(TrawError, match=reason):
            read(path)


def test_a_file_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    file = traw("float16", (2, 3), bytes(12))
    for data in (file[:-1], file + b"x"):
        path.write_bytes(data)
        with pytest.raises(TrawError, match="the header promises a file of 52 bytes"):
            open_file(path)


@given(data=st.binary(max_size=120))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    check(data)


@given(
    shape=shapes,
    dtype=st.sampled_from(sorted(DTYPES)),
    damage=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 60),
)
@settings(max_examples=300, deadline=None)
def test_any_damage_to_a_header_is_read_or_refused(
    shape: tuple[int, ...], dtype: str, damage: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(header_of(dtype, shape).encode())
    for position, value in damage:
        data[position % len(data)] = value
    check(bytes(data[: max(0, len(data) - cut % 8)]))


def check(data: bytes) -> None:
    """Whatever is accepted must be exactly what the header's own encoding says."""
    try:
        header = decode_header(data, file_bytes=len(data))
    except TrawError:
        return
    assert header.file_bytes == len(data)
    assert data.startswith(header.encode())
