"""A model in S3: pushed, checked, read by the stage, pulled, damaged, removed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from shuntserve_core.interfaces.store import StoreError, WeightStore
from shuntserve_core.testing.fault_proxy import Fault, fault_proxy
from shuntserve_core.testing.s3_servers import S3Server
from shuntserve_core.testing.stores import put
from shuntserve_core.weights import (
    DamagedObject,
    Manifest,
    load_manifest,
    read_stage,
    region_bytes,
    stage_tensors,
    whole_model,
)
from shuntserve_core.weights.inventory import remove_model, stored_models
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.pulling import pull_model
from shuntserve_core.weights.pushing import push_model
from shuntserve_core.weights.sources import open_source
from shuntserve_core.weights.verifying import verify_model
from shuntserve_plugins.storage import s3
from shuntserve_plugins.storage.directory import DirectoryStore
from shuntserve_plugins.storage.s3 import S3Store
from tests.core.weights.models import write_llama

Open = Callable[[str], S3Store]


@pytest.fixture
def store(server: S3Server, bucket: str, opened: Open) -> S3Store:
    return opened(server.url(bucket, "weights"))


@pytest.fixture
def manifest(store: S3Store, tmp_path: Path) -> Manifest:
    source, name = open_source(str(write_llama(tmp_path / "tiny", layers=2)))
    plan = plan_push(source, name, [1, 2])
    push_model(store, source, plan)
    assert push_model(store, source, plan).sent_bytes == 0
    return load_manifest(store, name)


def read(store: WeightStore, manifest: Manifest) -> bytes:
    entries = stage_tensors(manifest, 2, 1, range(1, 2), first=False, last=True)
    region = memoryview(bytearray(region_bytes(entries)))
    read_stage(store, entries, lambda e: region[e.offset : e.offset + e.nbytes])
    return bytes(region)


def test_pushed_pulled_read_and_removed(store: S3Store, manifest: Manifest, tmp_path: Path) -> None:
    report = verify_model(store, manifest, deep=True)
    assert (report.problems, report.unknown) == ((), ())
    copy = DirectoryStore(tmp_path / "copy")
    pull_model(store, manifest, copy)
    assert verify_model(copy, manifest, deep=True).problems == ()
    assert read(store, manifest) == read(copy, manifest)
    assert remove_model(store, manifest.name) == len(manifest.objects)
    assert stored_models(store) == []


def test_flipped_bytes_are_found_and_refused(store: S3Store, manifest: Manifest) -> None:
    chooser = random.Random(0)
    for path in chooser.sample(sorted(manifest.tensors), 8):
        key = manifest.name.prefix + path
        whole = store.get(key)[0]
        position = chooser.randrange(len(whole))
        damaged = whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :]
        put(store, key, damaged)
        found = verify_model(store, manifest, deep=True).problems
        assert [problem.key for problem in found] == [key]
        degree, rank = int(path[2]), int(path.split("/")[1].removeprefix("shard"))
        entries = [e for e in whole_model(manifest, degree, rank) if e.key == key]
        with pytest.raises(DamagedObject, match=path):
            read_stage(store, entries, lambda e: memoryview(bytearray(e.nbytes)))
        put(store, key, whole)


def test_bytes_flipped_on_the_way_are_refused(
    server: S3Server, bucket: str, manifest: Manifest, opened: Open
) -> None:
    with fault_proxy(server.endpoint) as proxy:
        store = opened(f"s3://{bucket}/weights?endpoint={proxy.endpoint}")
        assert read(store, manifest)
        proxy.faults.append(Fault("corrupt", least_bytes=1000))
        with pytest.raises(DamagedObject):
            read(store, manifest)
        assert proxy.happened == ["corrupt"]
        assert read(store, manifest)


def test_a_stage_is_read_through_every_fault(
    server: S3Server, bucket: str, manifest: Manifest, store: S3Store, opened: Open
) -> None:
    expected = read(store, manifest)
    with fault_proxy(server.endpoint) as proxy:
        faulty = opened(f"s3://{bucket}/weights?endpoint={proxy.endpoint}&stall_seconds=1")
        for kind in ("refuse", "reset", "truncate", "stall"):
            proxy.faults.append(Fault(kind, times=2, least_bytes=1000))
        assert read(faulty, manifest) == expected
        assert set(proxy.happened) == {"refuse", "reset", "truncate", "stall"}


def test_a_push_into_a_server_that_refuses_everything_is_named(
    server: S3Server, bucket: str, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    source, name = open_source(str(write_llama(tmp_path / "tiny", layers=1)))
    with fault_proxy(server.endpoint) as proxy:
        proxy.faults.append(Fault("refuse", times=100_000))
        store = opened(f"s3://{bucket}?endpoint={proxy.endpoint}")
        with pytest.raises(StoreError, match="the server answers SlowDown: Please reduce"):
            push_model(store, source, plan_push(source, name, [1]))
