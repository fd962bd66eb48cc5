"""Cutting a checkpoint and putting the shards into a store, so that it can be done again safely."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from shuntserve_core import __version__
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.store import ObjectMissing, Pieces, StoreError, WeightStore
from shuntserve_core.weights.budget import ByteBudget
from shuntserve_core.weights.checksum import checksum
from shuntserve_core.weights.cutting import shard_pieces
from shuntserve_core.weights.lease import Lease, hold_lease
from shuntserve_core.weights.manifest import (
    FileRecord,
    Manifest,
    TensorRecord,
    decode_manifest,
    encode_manifest,
)
from shuntserve_core.weights.objects import holds
from shuntserve_core.weights.pieces import total_bytes
from shuntserve_core.weights.planning import PlannedShard, PushPlan
from shuntserve_core.weights.sources import CheckpointSource

DEFAULT_WORKERS = 8

TENSOR_BYTES = 1 << 30
"""Source tensors held at a time, unless a single one is larger."""
SHARD_BYTES = 1 << 30
"""Shards under way at a time, unless a single one is larger."""


@frozen
class PushReport:
    """What a push did."""

    objects: int
    nbytes: int
    """Bytes of all objects of the push."""
    sent_bytes: int
    kept_objects: int
    """Objects that were there already and right."""
    removed_objects: int
    """Objects of a replaced model that were left over."""


@frozen
class Progress:
    """Told to the caller as a push goes on."""

    done_bytes: int
    """Sent, or found there."""
    sent_bytes: int
    total_bytes: int


def push_model(
    store: WeightStore,
    source: CheckpointSource,
    plan: PushPlan,
    *,
    replace: bool = False,
    wait: float = 0.0,
    workers: int = DEFAULT_WORKERS,
    on_progress: Callable[[Progress], None] | None = None,
) -> PushReport:
    """Bring the store to hold everything in `plan`, then write the manifest.

    What is there and right is kept, so an interrupted push is completed by the next one.  Degrees
    that the store already holds of the same revision stay.  A different revision under the name
    is refused, unless `replace`: then the old model is taken out of sight before the first byte is
    written, and what is left of it is removed at the end.
    Raises `UserError` where another push holds the model (after `wait` seconds), `StoreError`.
    """
    store.check()
    with hold_lease(store, plan.name.lock_key, wait=wait) as lease:
        before, version = _existing(store, plan, replace)
        if replace and version is not None:
            store.delete([plan.name.manifest_key])
            before, version = None, None
        push = _Push(store, source, plan, lease, before, on_progress)
        manifest = push.run(workers)
        lease.check()
        if before is not None:
            manifest = manifest.merged(before)
        store.put_if(plan.name.manifest_key, encode_manifest(manifest), version)
        removed = _remove_left_over(store, manifest) if replace else 0
    return push.report(removed)


def _existing(
    store: WeightStore, plan: PushPlan, replace: bool
) -> tuple[Manifest | None, str | None]:
    """The manifest that is there and its version; to be replaced, it may be anything."""
    key = plan.name.manifest_key
    try:
        data, version = store.get(key)
    except ObjectMissing:
        return None, None
    if replace:
        return None, version
    where = f"{store.url}: {key}"
    manifest = decode_manifest(data, where=where)
    if (manifest.source.revision, manifest.geometry) == (plan.source.revision, plan.geometry):
        return manifest, version
    raise UserError(
        f"the store holds another revision: {manifest.source.name} {manifest.source.revision}, "
        f"not {plan.source.name} {plan.source.revision}",
        where=where,
        remedy="push with --replace, or under another --name",
    )


def _remove_left_over(store: WeightStore, manifest: Manifest) -> int:
    name = manifest.name
    kept = {name.prefix + path for path in manifest.objects} | {name.manifest_key, name.lock_key}
    left_over = [info.key for info in store.list(name.prefix) if info.key not in kept]
    store.delete(left_over)
    store.discard_unfinished(name.prefix)
    return len(left_over)


class _Push:
    """One push under way: tensor by tensor, with a bounded number of bytes in memory."""

    def __init__(
        self,
        store: WeightStore,
        source: CheckpointSource,
        plan: PushPlan,
        lease: Lease,
        before: Manifest | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._store, self._source, self._plan, self._lease = store, source, plan, lease
        self._promised = before.objects if before else {}
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._done_bytes = self._sent_bytes = self._kept_objects = 0

    def run(self, workers: int) -> Manifest:
        """Send everything; returns the manifest to be written."""
        plan = self._plan
        with ThreadPoolExecutor(workers, thread_name_prefix="push-weights") as pool:
            try:
                futures = self._send_tensors(pool)
                tensors = {path: future.result() for path, future in futures.items()}
            except BaseException as error:
                self._failure = self._failure or error
                pool.shutdown(cancel_futures=True)
                raise self._failure from None
        return Manifest(
            base=plan.name.base,
            model=plan.name.model,
            tool=f"shuntserve {__version__}",
            source=plan.source,
            geometry=plan.geometry,
            files={path: self._send_file(path, data) for path, data in plan.files.items()},
            tensors=tensors,
        )

    def report(self, removed: int) -> PushReport:
        """What it came to."""
        plan = self._plan
        return PushReport(
            plan.objects, plan.total_bytes, self._sent_bytes, self._kept_objects, removed
        )

    def _send_tensors(self, pool: ThreadPoolExecutor) -> dict[str, Future[TensorRecord]]:
        futures: dict[str, Future[TensorRecord]] = {}
        tensor_budget, shard_budget = ByteBudget(TENSOR_BYTES), ByteBudget(SHARD_BYTES)
        for tensor, shards in self._plan.by_tensor():
            tensor_budget.take(tensor.header.data_bytes)
            data = _Shared(self._source.read(tensor.name), len(shards), tensor_budget)
            for shard in shards:
                shard_budget.take(shard.header.file_bytes)
                if self._failure:
                    return futures
                futures[shard.path] = pool.submit(self._send_shard, shard, data, shard_budget)
        return futures

    def _send_shard(self, shard: PlannedShard, data: _Shared, budget: ByteBudget) -> TensorRecord:
        try:
            header = shard.header
            with data as tensor:
                itemsize = header.dtype.itemsize
                cut = shard_pieces(tensor, shard.tensor.header.shape, itemsize, shard.cut)
                pieces = [memoryview(header.encode()), *cut]
                digest = checksum(pieces)
                self._send(shard.path, pieces, digest)
            return TensorRecord(header.dtype.name, header.shape, digest)
        except BaseException as error:
            self._failure = self._failure or error
            raise
        finally:
            budget.give_back(shard.header.file_bytes)

    def _send_file(self, path: str, data: bytes) -> FileRecord:
        record = FileRecord(len(data), checksum([data]))
        self._send(path, [memoryview(data)], record.checksum)
        return record

    def _send(self, path: str, pieces: Pieces, digest: str) -> None:
        """Put one object, unless it is there."""
        key, size = self._plan.name.prefix + path, total_bytes(pieces)
        if self._failure:
            raise StoreError("given up after another object failed", where=key)
        self._lease.check()
        promised = self._promised.get(path)
        if promised is not None and promised.checksum != digest:
            raise UserError(
                "the store holds other bytes of the same revision",
                where=key,
                remedy="push with --replace, or under another --name",
            )
        if holds(self._store, key, size, digest):
            self._tell(done=size, kept=1)
            return
        reported = 0

        def on_sent(count: int) -> None:
            nonlocal reported
            reported += count
            self._tell(done=count, sent=count)

        self._store.put(key, pieces, digest, on_sent)
        self._tell(done=size - reported)

    def _tell(self, *, done: int, sent: int = 0, kept: int = 0) -> None:
        with self._lock:
            self._done_bytes += done
            self._sent_bytes += sent
            self._kept_objects += kept
            if self._on_progress:
                total = self._plan.total_bytes
                self._on_progress(Progress(self._done_bytes, self._sent_bytes, total))


class _Shared:
    """A tensor that several shards are cut from; its memory goes with the last of them."""

    def __init__(self, tensor: NDArray[np.uint8], users: int, budget: ByteBudget) -> None:
        self._tensor: NDArray[np.uint8] | None = tensor
        self._users = users
        self._budget = budget
        self._lock = threading.Lock()

    def __enter__(self) -> NDArray[np.uint8]:
        assert self._tensor is not None
        return self._tensor

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users or self._tensor is None:
                return
            size, self._tensor = self._tensor.nbytes, None
        self._budget.give_back(size)
