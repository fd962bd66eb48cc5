"""What models a store holds, and how to be rid of one."""

from __future__ import annotations

from collections import defaultdict

from attrs import frozen

from shuntserve_core.interfaces.store import WeightStore
from shuntserve_core.weights.layout import LOCK, ROOT, ModelName
from shuntserve_core.weights.lease import hold_lease
from shuntserve_core.weights.stores import load_manifest


@frozen
class StoredModel:
    """One model in a store."""

    name: ModelName
    complete: bool
    """Whether it has a manifest; without one it cannot be used, only pushed again or removed."""
    degrees: tuple[int, ...]
    objects: int
    nbytes: int
    source: str
    """`kind name@revision`; empty without a manifest."""


def stored_models(store: WeightStore) -> list[StoredModel]:
    """Every model, complete or not, by name.  Raises `UserError` for a damaged manifest."""
    store.check()
    keys: defaultdict[ModelName, list[int]] = defaultdict(list)
    complete: set[ModelName] = set()
    for info in store.list(ROOT + "/"):
        parts = info.key.split("/")
        if len(parts) < 4 or parts[3] == LOCK:
            continue
        name = ModelName(parts[1], parts[2])
        if info.key == name.manifest_key:
            complete.add(name)
        else:
            keys[name].append(info.size)
    names = sorted(keys.keys() | complete, key=str)
    return [_describe(store, name, name in complete, keys[name]) for name in names]


def _describe(store: WeightStore, name: ModelName, complete: bool, sizes: list[int]) -> StoredModel:
    if not complete:
        return StoredModel(name, complete, (), len(sizes), sum(sizes), "")
    manifest = load_manifest(store, name)
    source = f"{manifest.source.kind} {manifest.source.name}@{manifest.source.revision}"
    return StoredModel(name, complete, manifest.degrees, len(sizes), sum(sizes), source)


def remove_model(store: WeightStore, name: ModelName, *, wait: float = 0.0) -> int:
    """Remove everything of a model, the manifest first; returns how many objects there were."""
    store.check()
    with hold_lease(store, name.lock_key, wait=wait):
        store.delete([name.manifest_key])
        keys = [i.key for i in store.list(name.prefix) if i.key != name.lock_key]
        store.delete(keys)
        unfinished = store.discard_unfinished(name.prefix)
    return len(keys) + unfinished
