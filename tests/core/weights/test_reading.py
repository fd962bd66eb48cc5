from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.store import StoreError
from shuntserve_core.weights import (
    Manifest,
    TensorEntry,
    read_stage,
    reading,
    region_bytes,
    stage_tensors,
    whole_model,
)
from shuntserve_core.weights.pulling import part_of
from shuntserve_core.weights.verifying import verify_model
from shuntserve_plugins.storage.directory import DirectoryStore


def read(store: DirectoryStore, entries: list[TensorEntry]) -> bytes:
    region = memoryview(bytearray(region_bytes(entries)))
    read_stage(store, entries, lambda e: region[e.offset : e.offset + e.nbytes])
    return bytes(region)


def test_a_stage_is_what_the_files_hold(
    store: DirectoryStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READ_BYTES", 1000)  # so that tensors take several requests
    entries = stage_tensors(manifest, 2, 1, range(1, 3), first=False, last=True)
    region = read(store, entries)
    names = [entry.name for entry in entries]
    assert names[-2:] == ["lm_head.weight", "model.norm.weight"]
    assert {entry.layer for entry in entries} == {1, 2, None}
    for entry in entries:
        file = (store.root / entry.key).read_bytes()
        assert file.endswith(region[entry.offset : entry.offset + entry.nbytes])
        assert entry.offset % 256 == 0


def test_stages_together_are_the_whole_model(manifest: Manifest) -> None:
    stages = [
        stage_tensors(manifest, 4, 3, range(1), first=True, last=False),
        stage_tensors(manifest, 4, 3, range(1, 2), first=False, last=False),
        stage_tensors(manifest, 4, 3, range(2, 3), first=False, last=True),
    ]
    together = [entry.key for stage in stages for entry in stage]
    assert sorted(together) == sorted(entry.key for entry in whole_model(manifest, 4, 3))
    assert len(set(together)) == len(together)


@pytest.mark.parametrize(
    ("tp", "rank", "layers", "reason"),
    [
        (3, 0, range(3), "no shards for tensor-parallel degree 3; it has 1, 2, 4, 8"),
        (2, 2, range(3), "no rank 2 in a group of 2"),
        (2, 0, range(4), "no layers 0:4; it has 0:3"),
        (2, 0, range(2, 1), "no layers 2:1"),
    ],
)
def test_a_stage_that_is_not_there(
    manifest: Manifest, tp: int, rank: int, layers: range, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        stage_tensors(manifest, tp, rank, layers, first=True, last=True)


def test_a_store_that_holds_a_part_says_what_is_missing(manifest: Manifest) -> None:
    part = part_of(manifest, stage_tensors(manifest, 2, 0, range(2), first=True, last=False))
    stage_tensors(part, 2, 0, range(1), first=True, last=False)
    with pytest.raises(UserError, match=r"layer 2, lm_head.weight missing; pull this stage too"):
        stage_tensors(part, 2, 0, range(1, 3), first=False, last=True)


def test_progress_and_first_layer(store: DirectoryStore, manifest: Manifest) -> None:
    entries = whole_model(manifest, 1, 0)
    told: list[TensorEntry] = []
    counted: list[int] = []
    report = read_stage(
        store,
        entries,
        lambda e: memoryview(bytearray(e.nbytes)),
        on_tensor=told.append,
        on_bytes=counted.append,
    )
    assert sum(counted) == report.nbytes == sum(entry.record.size for entry in entries)
    assert sorted(e.name for e in told) == sorted(e.name for e in entries)
    assert report.first_layer_seconds is not None
    assert 0 < report.first_layer_seconds <= report.seconds


def test_wrong_buffers_are_refused(store: DirectoryStore, manifest: Manifest) -> None:
    entries = whole_model(manifest, 1, 0)
    with pytest.raises(UserError, match="the buffer must be 81920 writable bytes, it has 5"):
        read_stage(store, entries, lambda e: memoryview(bytearray(5)))
    with pytest.raises(UserError, match="writable"):
        read_stage(store, entries, lambda e: memoryview(bytes(e.nbytes)))


def test_a_failing_store_ends_the_read(
    store: DirectoryStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("gone")

    monkeypatch.setattr(DirectoryStore, "read_into", fail)
    before = threading.active_count()
    with pytest.raises(StoreError, match="gone"):
        read(store, whole_model(manifest, 1, 0))
    assert threading.active_count() == before


def test_a_flipped_byte_anywhere_is_found_and_refused(
    store: DirectoryStore, manifest: Manifest
) -> None:
    chooser = random.Random(0)
    for path, record in manifest.objects.items():
        file = store.root / manifest.name.prefix / path
        position = chooser.randrange(record.size)
        if not path.startswith("TP"):
            continue
        with flipped(file, position):
            degree, rank = int(path[2]), int(path.split("/")[1].removeprefix("shard"))
            damaged = [e for e in whole_model(manifest, degree, rank) if e.key.endswith(path)]
            with pytest.raises(UserError, match="damaged"):
                read(store, damaged)


def test_deep_verification_finds_all_flipped_bytes(
    store: DirectoryStore, manifest: Manifest
) -> None:
    chooser = random.Random(1)
    for path, record in manifest.objects.items():
        file = store.root / manifest.name.prefix / path
        data = bytearray(file.read_bytes())
        data[chooser.randrange(record.size)] ^= 1 << chooser.randrange(8)
        file.write_bytes(data)
    assert verify_model(store, manifest).problems == ()
    report = verify_model(store, manifest, deep=True)
    assert len(report.problems) == len(manifest.objects)


def test_verification_finds_what_is_missing_short_or_unknown(
    store: DirectoryStore, manifest: Manifest
) -> None:
    assert verify_model(store, manifest, deep=True).problems == ()
    prefix = store.root / manifest.name.prefix
    (prefix / "TP1/shard0/model.norm.weight.bin").unlink()
    (prefix / "config.json").write_bytes(b"{}")
    (prefix / "stray").write_bytes(b"x")
    for deep in (False, True):
        report = verify_model(store, manifest, deep=deep)
        found = {
            problem.key.removeprefix(manifest.name.prefix): problem.what
            for problem in report.problems
        }
        assert found["TP1/shard0/model.norm.weight.bin"] == "missing"
        assert "2 bytes, the manifest says" in found["config.json"]
        assert report.unknown == (manifest.name.prefix + "stray",)


class flipped:  # noqa: N801 - reads as a verb
    def __init__(self, path: Path, position: int) -> None:
        self._path, self._position = path, position

    def __enter__(self) -> None:
        self._flip()

    def __exit__(self, *_: object) -> None:
        self._flip()

    def _flip(self) -> None:
        data = bytearray(self._path.read_bytes())
        data[self._position] ^= 0x40
        self._path.write_bytes(data)
