from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core import foreign
from shuntserve_core.errors import UserError
from shuntserve_core.foreign import file_inside, parse_json, read_bytes, whole_number

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=20,
)


@given(values)
@settings(max_examples=100, deadline=None)
def test_sound_documents_are_read(value: Any) -> None:
    text = json.dumps(value)
    try:
        expected = json.loads(text)
        assert "Infinity" not in text
    except (ValueError, AssertionError):
        return
    assert parse_json(text) == parse_json(text.encode()) == expected


@given(st.text(alphabet='[]{}",:0123456789eEnulltrfasINy-.\\ ', max_size=80) | st.binary())
@settings(max_examples=300, deadline=None)
def test_anything_is_read_or_refused(text: str | bytes) -> None:
    try:
        document = parse_json(text)
    except ValueError:
        return
    json.dumps(document, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("NaN", "NaN is no number"),
        ("[1, -Infinity]", "-Infinity is no number"),
        ('{"a": 1e999}', "1e999 is too large"),
        ("[" * 65 + "]" * 65, "nested more than 64"),
        ("[" * 200_000, "nested more than 64"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested more than 64"),
        ("9" * 5000, "integer string"),
    ],
)
def test_what_python_would_take_or_die_of(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_many_small_values_are_counted_before_they_are_made() -> None:
    text = b"[" + b"[]," * foreign.MOST_JSON_VALUES + b"[]]"
    tracemalloc.start()
    with pytest.raises(ValueError, match="values, at most"):
        parse_json(text)
    with pytest.raises(ValueError, match="bytes of JSON"):
        parse_json(bytes(foreign.MOST_JSON_BYTES + 1))
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


def test_reads_ordinary_files_of_a_bounded_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(UserError, match="larger than the 4 bytes"):
        read_bytes(tmp_path / "a", 4)
    with pytest.raises(UserError, match="not an ordinary file"):
        read_bytes(Path("/dev/zero"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not an ordinary file"):
        read_bytes(tmp_path / "pipe")
    with pytest.raises(OSError, match="directory"):
        read_bytes(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../x", "", "a\0b", ".."])
def test_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no name of a file in the folder"):
        file_inside(tmp_path, name)


def test_links_stay_in_the_folder_or_in_the_cache(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "m" / "snapshots" / "abc", tmp_path / "m" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").touch()
    (tmp_path / "secret").touch()
    (snapshot / "sound").symlink_to("../../blobs/1")
    (snapshot / "stolen").symlink_to(tmp_path / "secret")
    (snapshot / "loop").symlink_to("loop")
    assert file_inside(snapshot, "sound") == snapshot / "sound"
    with pytest.raises(UserError, match="stolen is a link out of the folder"):
        file_inside(snapshot, "stolen")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "x").symlink_to(blobs / "1")
    with pytest.raises(UserError, match="link out of the folder"):
        file_inside(tmp_path / "plain", "x")
    with pytest.raises(UserError):
        file_inside(snapshot, "loop")


@pytest.mark.parametrize("value", [0, 11, True, 1.0, "1", None, [], 1 << 80])
def test_whole_numbers(value: object) -> None:
    assert whole_number(10, 1, 10) == 10
    with pytest.raises(ValueError, match="from 1 to 10"):
        whole_number(value, 1, 10)
