"""Which tensors a store holds, and reading those that it lacks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from attrs import frozen

from shuntserve_core.registry import Registry
from shuntserve_core.tensorstore.memory import Filling, Memory, OutOfMemory, Segment
from shuntserve_core.tensorstore.spec import LoadReport, ShardSpec, TensorStoreError, TensorView
from shuntserve_core.weights import (
    Manifest,
    TensorEntry,
    load_manifest,
    open_store,
    parse_model_name,
    read_pieces,
    stage_tensors,
)
from shuntserve_core.weights.stages import ALIGNMENT

Progress = Callable[[int, int], None]
"""Told bytes read so far and bytes to read."""
Key = tuple[str, str]
"""URL of the weight store, key of the object: what tells tensors apart."""


@frozen(eq=False)
class _Held:
    """One tensor in memory."""

    segment: Segment
    offset: int
    nbytes: int


class Shards:
    """The weights of one store.

    Each layer has a segment of its own, so that layers can come and go one by one.  Tensors are
    known by the object that they come from: a tied table is held once, whatever it is called.
    """

    def __init__(
        self, memory: Memory, registry: Registry, make_room: Callable[[], int] = lambda: 0
    ) -> None:
        self._memory, self._registry, self._make_room = memory, registry, make_room
        self._filled: set[Segment] = set()
        """Segments that are being read into."""
        self._held: dict[Key, _Held] = {}
        self._manifests: dict[tuple[str, str], Manifest] = {}
        self._bytes_read: dict[str, int] = {}
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    def load(self, spec: ShardSpec, progress: Progress) -> LoadReport:
        """Read what is missing of the shard; one load at a time.

        After a failure every layer that is complete and verified is kept, and not read again.
        """
        with self._loading:
            started = time.perf_counter()
            entries = self._entries(spec)
            with self._lock:
                missing = [e for e in entries if (spec.weights, e.key) not in self._held]
            self._read(spec.weights, missing, progress)
            kept_bytes = sum(e.nbytes for e in entries) - sum(e.nbytes for e in missing)
            return LoadReport(
                tensors_read=len(missing),
                bytes_read=sum(e.record.size for e in missing),
                tensors_kept=len(entries) - len(missing),
                bytes_kept=kept_bytes,
                seconds=time.perf_counter() - started,
            )

    def attach(self, spec: ShardSpec) -> tuple[list[TensorView], list[int], list[int]]:
        """Tensors of a loaded shard, and the size of and a descriptor for each of their segments.

        The caller must close the descriptors.
        Raises `TensorStoreError` if the shard, or a part of it, is not loaded.
        """
        manifest = self._manifests.get((spec.weights, spec.model))
        entries = _stage(manifest, spec) if manifest else []
        with self._lock:
            held = [self._held.get((spec.weights, entry.key)) for entry in entries]
            missing = sum(one is None for one in held)
            if missing or not entries:
                raise TensorStoreError(
                    f"{missing or 'all'} tensors of the shard are not loaded",
                    where=spec.label,
                    remedy="load it first",
                )
            segments: dict[Segment, int] = {}
            views = []
            for entry, one in zip(entries, held, strict=True):
                assert one is not None
                index = segments.setdefault(one.segment, len(segments))
                views.append(
                    TensorView(entry.name, entry.dtype, entry.shape, index, one.offset, one.nbytes)
                )
            return views, [s.nbytes for s in segments], _lend(segments)

    def retain(self, specs: Iterable[ShardSpec]) -> int:
        """Drop every tensor that none of the shards needs; returns the bytes freed."""
        with self._loading:
            wanted = {(spec.weights, e.key) for spec in specs for e in self._entries(spec)}
            with self._lock:
                used = {one.segment for key, one in self._held.items() if key in wanted}
                unused = {one.segment for one in self._held.values()} - used
                self._held = {k: one for k, one in self._held.items() if one.segment in used}
            for segment in unused:
                segment.close()
            return sum(segment.nbytes for segment in unused)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all segments that are held."""
        with self._lock:
            return sum(s.nbytes for s in {one.segment for one in self._held.values()})

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all segments, those included that are being read into."""
        with self._lock:
            held = {one.segment for one in self._held.values()}
            return sum(segment.nbytes for segment in held | self._filled)

    @property
    def tensors(self) -> int:
        """Tensors held."""
        return len(self._held)

    @property
    def bytes_read(self) -> Mapping[str, int]:
        """Bytes that came from each weight store, those of failed reads included."""
        with self._lock:
            return dict(self._bytes_read)

    def _entries(self, spec: ShardSpec) -> list[TensorEntry]:
        name = (spec.weights, spec.model)
        if name not in self._manifests:
            store = open_store(spec.weights, self._registry)
            try:
                self._manifests[name] = load_manifest(store, parse_model_name(spec.model))
            finally:
                store.close()
        return _stage(self._manifests[name], spec)

    def _read(self, url: str, entries: list[TensorEntry], progress: Progress) -> None:
        if not entries:
            return
        places = self._allocate(entries)
        verified: set[str] = set()
        total = sum(entry.record.size for entry in entries)
        done = 0

        def count(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            with self._lock:
                self._bytes_read[url] = self._bytes_read.get(url, 0) + nbytes
            progress(done, total)

        store = open_store(url, self._registry)
        filling = self._memory.filling()
        try:
            read_pieces(
                store,
                entries,
                _Places(places, filling),
                on_bytes=count,
                on_tensor=lambda entry: verified.add(entry.key),
            )
        finally:
            store.close()
            filling.close()
            self._keep(url, places, verified)

    def _allocate(self, entries: list[TensorEntry]) -> dict[str, _Held]:
        """A segment for each layer, and for each tensor outside the layers."""
        groups: dict[str, list[TensorEntry]] = {}
        for entry in entries:
            group = entry.name if entry.layer is None else f"layer-{entry.layer}"
            groups.setdefault(group, []).append(entry)
        places: dict[str, _Held] = {}
        for group, members in groups.items():
            offsets, size = [], 0
            for entry in members:
                offsets.append(size)
                size += -(-entry.nbytes // ALIGNMENT) * ALIGNMENT
            segment = self._segment(group, size)
            for entry, offset in zip(members, offsets, strict=True):
                places[entry.key] = _Held(segment, offset, entry.nbytes)
        return places

    def _segment(self, name: str, nbytes: int) -> Segment:
        """New memory; if there is none, keys and values that nobody has must make room."""
        try:
            segment = self._memory.segment(name, nbytes)
        except OutOfMemory:
            if not self._make_room():
                self._drop(self._filled)
                raise
            return self._segment(name, nbytes)
        with self._lock:
            self._filled.add(segment)
        return segment

    def _drop(self, segments: Iterable[Segment]) -> None:
        dropped = set(segments)
        with self._lock:
            self._filled -= dropped
        for segment in dropped:
            segment.close()

    def _keep(self, url: str, places: dict[str, _Held], verified: set[str]) -> None:
        """Hold the segments that are complete, and drop the others."""
        incomplete = {place.segment for key, place in places.items() if key not in verified}
        complete = {place.segment for place in places.values()} - incomplete
        for segment in complete:
            segment.seal()
        self._drop(incomplete)
        with self._lock:
            self._filled -= complete
            for key, place in places.items():
                if place.segment in complete:
                    self._held[url, key] = place


@frozen
class _Places:
    """Where the pieces of tensors go."""

    places: Mapping[str, _Held]
    filling: Filling

    def take(self, entry: TensorEntry, offset: int, nbytes: int) -> memoryview:
        place = self.places[entry.key]
        return self.filling.take(place.segment, place.offset + offset, nbytes)

    def put(self, entry: TensorEntry, offset: int, buffer: memoryview) -> None:
        place = self.places[entry.key]
        self.filling.put(place.segment, place.offset + offset, buffer)

    def drop(self, entry: TensorEntry, offset: int, buffer: memoryview) -> None:
        self.filling.drop(buffer)


def _lend(segments: Iterable[Segment]) -> list[int]:
    fds: list[int] = []
    try:
        for segment in segments:
            fds.append(segment.lend())
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds


def _stage(manifest: Manifest, spec: ShardSpec) -> list[TensorEntry]:
    layers = range(spec.start, spec.stop)
    return stage_tensors(manifest, spec.tp, spec.rank, layers, first=spec.first, last=spec.last)
