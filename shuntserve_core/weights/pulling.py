"""Copying a model, or one stage of it, into another store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from attrs import evolve, frozen

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.store import ObjectMissing, WeightStore
from shuntserve_core.weights.budget import ByteBudget
from shuntserve_core.weights.lease import hold_lease
from shuntserve_core.weights.manifest import (
    FileRecord,
    Manifest,
    TensorRecord,
    decode_manifest,
    encode_manifest,
)
from shuntserve_core.weights.objects import holds, read_object
from shuntserve_core.weights.stages import TensorEntry

DEFAULT_WORKERS = 8
HELD_BYTES = 1 << 30
"""Objects held in memory at a time, unless a single one is larger."""


@frozen
class PullReport:
    """What a pull did."""

    objects: int
    nbytes: int
    copied_bytes: int
    """The rest was there already and right."""


def part_of(manifest: Manifest, entries: list[TensorEntry]) -> Manifest:
    """The manifest of a stage: all files, and only the tensors of the stage."""
    prefix = manifest.name.prefix
    return evolve(manifest, tensors={e.key.removeprefix(prefix): e.record for e in entries})


def pull_model(
    store: WeightStore,
    manifest: Manifest,
    destination: WeightStore,
    *,
    workers: int = DEFAULT_WORKERS,
    on_bytes: Callable[[int], None] | None = None,
) -> PullReport:
    """Copy everything that `manifest` names, verified, then write the manifest there.

    Earlier pulls of other stages of the same revision are added to.  Raises `DamagedObject` for an
    object that is not what the manifest says, `UserError` for another revision over there.
    """
    name = manifest.name
    with hold_lease(destination, name.lock_key) as lease:
        there, version = _there(destination, manifest)
        copied = _copy_all(store, manifest, destination, workers, on_bytes)
        lease.check()
        merged = manifest.merged(there) if there else manifest
        destination.put_if(name.manifest_key, encode_manifest(merged), version)
    return PullReport(len(manifest.objects), manifest.total_bytes, copied)


def _there(destination: WeightStore, manifest: Manifest) -> tuple[Manifest | None, str | None]:
    where = f"{destination.url}: {manifest.name.manifest_key}"
    try:
        data, version = destination.get(manifest.name.manifest_key)
    except ObjectMissing:
        return None, None
    there = decode_manifest(data, where=where)
    if (there.source, there.geometry, there.files) != (
        manifest.source,
        manifest.geometry,
        manifest.files,
    ):
        raise UserError(
            f"another revision is there: {there.source.name} {there.source.revision}",
            where=where,
            remedy="remove it first (weights rm), or pull into another directory",
        )
    return there, version


def _copy_all(
    store: WeightStore,
    manifest: Manifest,
    destination: WeightStore,
    workers: int,
    on_bytes: Callable[[int], None] | None,
) -> int:
    budget = ByteBudget(HELD_BYTES)

    def copy(key: str, record: FileRecord | TensorRecord) -> int:
        try:
            return _copy(store, key, record, destination, on_bytes)
        finally:
            budget.give_back(record.size)

    with ThreadPoolExecutor(workers, thread_name_prefix="pull-weights") as pool:
        futures: list[Future[int]] = []
        for path, record in manifest.objects.items():
            budget.take(record.size)
            if any(future.done() and future.exception() for future in futures[-2 * workers :]):
                break
            futures.append(pool.submit(copy, manifest.name.prefix + path, record))
        try:
            return sum(future.result() for future in futures)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _copy(
    store: WeightStore,
    key: str,
    record: FileRecord | TensorRecord,
    destination: WeightStore,
    on_bytes: Callable[[int], None] | None,
) -> int:
    if holds(destination, key, record.size, record.checksum):
        if on_bytes:
            on_bytes(record.size)
        return 0
    data = read_object(store, key, record, on_bytes)
    destination.put(key, [memoryview(data)], record.checksum)
    return record.size
