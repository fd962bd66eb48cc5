from __future__ import annotations

import os
from pathlib import Path

import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.store import StoreError
from shuntserve_core.testing.stores import WeightStoreContract, put, random_bytes
from shuntserve_core.weights.checksum import checksum
from shuntserve_plugins.storage import directory
from shuntserve_plugins.storage.directory import DirectoryStore


class TestDirectoryStore(WeightStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> DirectoryStore:
        return DirectoryStore(tmp_path)


def test_urls_and_paths_mean_the_same(tmp_path: Path) -> None:
    spaced = tmp_path / "a b"
    assert DirectoryStore.from_url(spaced.as_uri()) == DirectoryStore.from_url(str(spaced))
    with pytest.raises(UserError, match="three slashes"):
        DirectoryStore.from_url("file://host/path")


def test_keys_cannot_leave_the_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="below its store"):
        DirectoryStore(tmp_path / "store").get("../secret")


def test_goes_on_after_the_parts_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "PART_BYTES", 1000)
    data = random_bytes(3500)
    store = DirectoryStore(tmp_path)
    unfinished = tmp_path / f".key.{checksum([data]).rpartition(':')[2]}.part"
    unfinished.write_bytes(data[:2300])
    assert list(store.list("")) == []
    assert put(store, "key", data) == 1500
    assert store.get("key")[0] == data
    assert not unfinished.exists()


def test_a_part_that_is_wrong_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "PART_BYTES", 1000)
    data = random_bytes(3500)
    unfinished = tmp_path / f".key.{checksum([data]).rpartition(':')[2]}.part"
    unfinished.write_bytes(data[:1500] + b"x" + data[1501:] + b"too long")
    assert put(DirectoryStore(tmp_path), "key", data) == 2500
    assert (tmp_path / "key").read_bytes() == data


def test_discards_what_interrupted_puts_left(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / ".key.abc.part").write_bytes(b"x")
    assert DirectoryStore(tmp_path).discard_unfinished("raw/") == 1
    assert not (tmp_path / "raw").exists()


def test_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every write to this device fails as on a full disk, whoever writes.
    data = random_bytes(3500)
    full = os.open("/dev/full", os.O_WRONLY)
    write = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda _, pieces, at: write(full, pieces, at))
    with pytest.raises(StoreError) as caught:
        put(DirectoryStore(tmp_path), "key", data)
    assert str(caught.value) == (
        f"{tmp_path}: key: No space left on device; "
        "free some space and push again: what was stored is kept"
    )
