"""Whoever may write into a store leaves links in it: nothing is written or removed through them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shuntserve_core.interfaces.store import StoreError
from shuntserve_core.testing.stores import put
from shuntserve_core.weights.checksum import checksum
from shuntserve_plugins.storage.directory import DirectoryStore

DATA = b"a shard"
PART = f".key.{checksum([DATA]).rpartition(':')[2]}.part"


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    (tmp_path / "store").mkdir()
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("precious")
    (tmp_path / "outside" / ".precious.0.part").write_text("precious")
    return tmp_path / "outside"


@pytest.fixture(autouse=True)
def is_untouched(outside: Path) -> object:
    yield
    assert sorted(path.name for path in outside.iterdir()) == [".precious.0.part", "precious"]
    assert {path.read_text() for path in outside.iterdir()} == {"precious"}


def test_a_folder_that_is_a_link(store: DirectoryStore, outside: Path) -> None:
    (store.root / "raw").symlink_to(outside)
    with pytest.raises(StoreError, match="raw is a link, and nothing is written through links"):
        put(store, "raw/key", DATA)
    with pytest.raises(StoreError, match="raw is a link"):
        store.put_if("raw/key", DATA, None)
    with pytest.raises(StoreError, match="raw is a link"):
        store.delete(["raw/precious"])
    with pytest.raises(StoreError, match="raw is a link"):
        store.discard_unfinished("raw/")


def test_a_folder_that_is_a_link_further_down(store: DirectoryStore, outside: Path) -> None:
    (store.root / "raw").mkdir()
    (store.root / "raw" / "org").symlink_to(outside)
    with pytest.raises(StoreError, match="org is a link"):
        put(store, "raw/org/model/key", DATA)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_part_that_is_a_link(store: DirectoryStore, outside: Path, link: object) -> None:
    link(outside / "precious", store.root / PART)  # type: ignore[operator]
    with pytest.raises(StoreError, match="is a link"):
        put(store, "key", DATA)


def test_a_part_that_is_a_link_to_nothing(store: DirectoryStore, outside: Path) -> None:
    (store.root / PART).symlink_to(outside / "new")
    with pytest.raises(StoreError, match="is a link"):
        put(store, "key", DATA)


def test_a_part_that_is_a_pipe(store: DirectoryStore) -> None:
    os.mkfifo(store.root / PART)
    with pytest.raises(StoreError):
        put(store, "key", DATA)


def test_an_object_that_is_a_link_is_replaced_not_written_through(
    store: DirectoryStore, outside: Path
) -> None:
    (store.root / "key").symlink_to(outside / "precious")
    put(store, "key", DATA)
    assert (store.root / "key").read_bytes() == DATA
    assert not (store.root / "key").is_symlink()


def test_a_lock_that_is_a_link(store: DirectoryStore, outside: Path) -> None:
    (store.root / "lock").symlink_to(outside / "precious")
    with pytest.raises(StoreError):
        store.put_if("lock", DATA, checksum([b"precious"]))


@pytest.mark.parametrize("key", ["", "/etc/x", "a/../../x", "a//b", "./a", "a\0b", ".."])
def test_keys_that_are_no_plain_path(store: DirectoryStore, key: str) -> None:
    with pytest.raises(StoreError, match="stays below its store"):
        put(store, key, DATA)
