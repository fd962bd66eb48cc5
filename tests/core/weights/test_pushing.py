from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.store import ObjectMissing, Pieces, StoreError
from shuntserve_core.processes import identity_of
from shuntserve_core.weights import Manifest, ModelName, lease, load_manifest, pushing
from shuntserve_core.weights.budget import ByteBudget
from shuntserve_core.weights.inventory import remove_model, stored_models
from shuntserve_core.weights.lease import hold_lease
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.pulling import pull_model
from shuntserve_core.weights.pushing import Progress, PushReport, push_model
from shuntserve_core.weights.sources.safetensors import SafetensorsDirectory
from shuntserve_core.weights.verifying import verify_model
from shuntserve_plugins.storage.directory import DirectoryStore
from tests.core.weights.models import write_llama

NAME = ModelName("local", "tiny")


def push(store: DirectoryStore, checkpoint: Path, *degrees: int, **options: object) -> PushReport:
    source = SafetensorsDirectory(checkpoint)
    return push_model(store, source, plan_push(source, NAME, degrees), **options)  # type: ignore[arg-type]


def test_pushing_again_sends_nothing_and_changes_nothing(
    store: DirectoryStore, checkpoint: Path
) -> None:
    first = push(store, checkpoint, 1, 2)
    manifest = (store.root / NAME.manifest_key).read_bytes()
    assert first.sent_bytes == first.nbytes
    second = push(store, checkpoint, 1, 2)
    assert (second.sent_bytes, second.kept_objects) == (0, second.objects)
    assert (store.root / NAME.manifest_key).read_bytes() == manifest


def test_another_degree_is_added(store: DirectoryStore, checkpoint: Path) -> None:
    push(store, checkpoint, 1)
    push(store, checkpoint, 4)
    manifest = load_manifest(store, NAME)
    assert manifest.degrees == (1, 4)
    assert verify_model(store, manifest, deep=True).problems == ()


def test_damaged_and_lost_objects_are_sent_again(store: DirectoryStore, checkpoint: Path) -> None:
    push(store, checkpoint, 1)
    shard = store.root / NAME.prefix / "TP1/shard0"
    norm = shard / "model.norm.weight.bin"
    norm.write_bytes(norm.read_bytes()[:-1] + b"?")
    lost = shard / "lm_head.weight.bin"
    size = lost.stat().st_size
    lost.unlink()
    assert push(store, checkpoint, 1).sent_bytes == norm.stat().st_size + size
    assert verify_model(store, load_manifest(store, NAME), deep=True).problems == ()


def test_another_revision_is_refused_unless_it_is_to_replace(
    store: DirectoryStore, checkpoint: Path, tmp_path: Path
) -> None:
    push(store, checkpoint, 1, 8)
    other = write_llama(tmp_path / "other", layers=2)
    with pytest.raises(UserError, match=r"another revision: tiny .* push with --replace"):
        push(store, other, 1)
    report = push(store, other, 1, replace=True)
    assert report.removed_objects > 0
    manifest = load_manifest(store, NAME)
    assert (manifest.geometry.layers, manifest.degrees) == (2, (1,))
    assert verify_model(store, manifest, deep=True).unknown == ()


def test_other_bytes_under_the_same_fingerprint_are_refused(
    store: DirectoryStore, checkpoint: Path, tmp_path: Path
) -> None:
    push(store, checkpoint, 1)
    other = write_llama(tmp_path / "tiny", seed=1)
    before = {path: path.read_bytes() for path in store.root.rglob("*.bin")}
    with pytest.raises(UserError, match="other bytes of the same revision"):
        push(store, other, 1)
    assert {path: path.read_bytes() for path in store.root.rglob("*.bin")} == before
    push(store, other, 1, replace=True)
    assert verify_model(store, load_manifest(store, NAME), deep=True).problems == ()


def test_a_failed_push_leaves_no_model(
    store: DirectoryStore, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = DirectoryStore.put

    def fail(self: DirectoryStore, key: str, pieces: Pieces, *rest: object) -> None:
        if "layers.1.mlp" in key:
            raise StoreError("the disk is full")
        put(self, key, pieces, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(DirectoryStore, "put", fail)
        with pytest.raises(StoreError, match="the disk is full"):
            push(store, checkpoint, 2)
    with pytest.raises(ObjectMissing, match=r"no complete model local/tiny; complete models: none"):
        load_manifest(store, NAME)
    (model,) = stored_models(store)
    assert not model.complete
    push(store, checkpoint, 2)
    assert verify_model(store, load_manifest(store, NAME), deep=True).problems == ()


def test_progress_adds_up(store: DirectoryStore, checkpoint: Path) -> None:
    seen: list[Progress] = []
    report = push(store, checkpoint, 2, on_progress=seen.append)
    assert seen[-1] == Progress(report.nbytes, report.nbytes, report.nbytes)
    assert [p.done_bytes for p in seen] == sorted(p.done_bytes for p in seen)


def test_two_pushes_cannot_interleave(store: DirectoryStore, checkpoint: Path) -> None:
    with hold_lease(store, NAME.lock_key), pytest.raises(UserError, match="is pushing this model"):
        push(store, checkpoint, 1)
    push(store, checkpoint, 1)


def test_a_push_waits_for_another(store: DirectoryStore, checkpoint: Path) -> None:
    held, finished = threading.Event(), threading.Event()

    def hold() -> None:
        with hold_lease(store, NAME.lock_key):
            held.set()
            finished.wait(0.7)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    push(store, checkpoint, 1, wait=60)
    other.join()
    assert load_manifest(store, NAME).degrees == (1,)


def test_a_push_that_lost_its_lock_writes_no_manifest(
    store: DirectoryStore, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases: list[lease.Lease] = []

    @contextlib.contextmanager
    def noted(*arguments: Any, **options: Any) -> Iterator[lease.Lease]:
        with hold_lease(*arguments, **options) as held:
            leases.append(held)
            yield held

    def steal(_: Progress) -> None:
        leases[0].lost = "stolen"

    monkeypatch.setattr(pushing, "hold_lease", noted)
    with pytest.raises(StoreError, match="the lock was lost: stolen"):
        push(store, checkpoint, 1, on_progress=steal)
    with pytest.raises(ObjectMissing):
        load_manifest(store, NAME)


def write_lock(store: DirectoryStore, **changes: object) -> None:
    holder = json.loads(lease._describe("token")) | changes
    path = store.root / NAME.lock_key
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(holder))


def test_a_lock_that_ran_out_is_taken_over(store: DirectoryStore, checkpoint: Path) -> None:
    write_lock(store, process="elsewhere 1 1", expires=1.0)
    push(store, checkpoint, 1)


def test_a_lock_of_an_unseen_holder_is_respected(store: DirectoryStore, checkpoint: Path) -> None:
    write_lock(store, process="elsewhere 1 1", host="far")
    with pytest.raises(UserError, match=r"far is pushing this model; .* the lock ends in \d+ s"):
        push(store, checkpoint, 1)


def test_a_lock_of_a_process_that_died_here_is_taken_over(
    store: DirectoryStore, checkpoint: Path
) -> None:
    with subprocess.Popen(["sleep", "60"]) as holder:
        process = identity_of(holder.pid)
        holder.kill()
    write_lock(store, process=process)
    push(store, checkpoint, 1)


def test_a_lock_that_is_taken_over_is_noticed(store: DirectoryStore) -> None:
    with hold_lease(store, NAME.lock_key) as held:
        (store.root / NAME.lock_key).write_text("somebody else's")
        held.renew()
        with pytest.raises(StoreError, match="another push took it over"):
            held.check()
    assert (store.root / NAME.lock_key).read_text() == "somebody else's"


def test_removing(store: DirectoryStore, manifest: Manifest) -> None:
    assert [model.name for model in stored_models(store)] == [NAME]
    assert remove_model(store, NAME) == len(manifest.objects)
    assert list(store.root.rglob("*")) == []
    assert stored_models(store) == []


def test_pulling_is_verified_and_goes_on(
    store: DirectoryStore, manifest: Manifest, tmp_path: Path
) -> None:
    copy = DirectoryStore(tmp_path / "copy")
    report = pull_model(store, manifest, copy)
    assert report.copied_bytes == manifest.total_bytes
    assert load_manifest(copy, NAME) == manifest
    (copy.root / NAME.prefix / "config.json").unlink()
    assert pull_model(store, manifest, copy).copied_bytes == manifest.files["config.json"].size
    path = NAME.prefix + "TP1/shard0/model.norm.weight.bin"
    for root in (store.root, copy.root):
        (root / path).write_bytes(bytes((root / path).stat().st_size))
    with pytest.raises(StoreError, match="damaged"):
        pull_model(store, manifest, copy)


def test_memory_in_flight_is_bounded(
    store: DirectoryStore, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    class Watched(ByteBudget):
        def take(self, size: int) -> None:
            super().take(size)
            held.append(self._held)

    monkeypatch.setattr(pushing, "ByteBudget", Watched)
    monkeypatch.setattr(pushing, "TENSOR_BYTES", 20_000)
    monkeypatch.setattr(pushing, "SHARD_BYTES", 20_000)
    push(store, checkpoint, 1, 2, 4)
    largest = 1024 * 40 * 2 + 40
    assert max(held) <= largest
    assert len(held) > 100


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before
