"""Comparing what a store holds with what its manifest promises."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from attrs import frozen

from shuntserve_core.interfaces.store import ObjectMissing, WeightStore
from shuntserve_core.weights.manifest import FileRecord, Manifest, TensorRecord
from shuntserve_core.weights.objects import stored_checksum

DEFAULT_WORKERS = 8


@frozen
class Problem:
    """An object that is not what the manifest promises."""

    key: str
    what: str


@frozen
class VerifyReport:
    """What was found."""

    objects: int
    nbytes: int
    deep: bool
    problems: tuple[Problem, ...]
    unknown: tuple[str, ...]
    """Keys below the model that the manifest does not name: of no harm, and of no use."""


def verify_model(
    store: WeightStore,
    manifest: Manifest,
    *,
    deep: bool = False,
    workers: int = DEFAULT_WORKERS,
    on_bytes: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Check that every object is there with the right size; `deep` reads every byte."""
    name = manifest.name
    wanted = {name.prefix + path: record for path, record in manifest.objects.items()}
    sizes = {info.key: info.size for info in store.list(name.prefix)}
    problems = {
        key: problem for key, record in wanted.items() if (problem := _size(key, record, sizes))
    }
    if deep:
        whole = {key: record for key, record in wanted.items() if key not in problems}
        with ThreadPoolExecutor(workers, thread_name_prefix="verify-weights") as pool:
            found = pool.map(lambda key: _content(store, key, whole[key], on_bytes), whole)
            problems |= {problem.key: problem for problem in found if problem}
    ours = wanted.keys() | {name.manifest_key, name.lock_key}
    return VerifyReport(
        objects=len(wanted),
        nbytes=manifest.total_bytes,
        deep=deep,
        problems=tuple(problems[key] for key in sorted(problems)),
        unknown=tuple(sorted(sizes.keys() - ours)),
    )


def _size(key: str, record: FileRecord | TensorRecord, sizes: dict[str, int]) -> Problem | None:
    size = sizes.get(key)
    if size is None:
        return Problem(key, "missing")
    if size != record.size:
        return Problem(key, f"{size} bytes, the manifest says {record.size}")
    return None


def _content(
    store: WeightStore,
    key: str,
    record: FileRecord | TensorRecord,
    on_bytes: Callable[[int], None] | None,
) -> Problem | None:
    try:
        found = stored_checksum(store, key, record.size, on_bytes)
    except ObjectMissing:
        return Problem(key, "missing")
    return None if found == record.checksum else Problem(key, "damaged: its checksum is wrong")
