"""From a store's URL to the plugin that speaks its protocol."""

from __future__ import annotations

from shuntserve_core.interfaces.store import ObjectMissing, WeightStore
from shuntserve_core.registry import Registry
from shuntserve_core.weights.layout import MANIFEST, ROOT, ModelName
from shuntserve_core.weights.manifest import Manifest, decode_manifest


def open_store(url: str, registry: Registry) -> WeightStore:
    """Open `scheme://...`, or a plain path as a directory.

    Raises `UserError` for a scheme that no plugin provides, listing those that there are.
    """
    scheme, separator, _ = url.partition("://")
    kind = scheme if separator else "file"
    return registry.get("weight-store", kind, where=url).from_url(url)


def load_manifest(store: WeightStore, name: ModelName) -> Manifest:
    """The manifest of a model.

    Raises `ObjectMissing` that lists the models there are, `UserError` for a damaged manifest.
    """
    where = f"{store.url}: {name.manifest_key}"
    try:
        data, _ = store.get(name.manifest_key)
    except ObjectMissing as error:
        store.check()
        there = ", ".join(map(str, models_in(store))) or "none"
        raise ObjectMissing(
            f"the store has no complete model {name}",
            where=store.url,
            remedy=f"complete models: {there}; push again to complete an interrupted push",
        ) from error
    return decode_manifest(data, where=where)


def models_in(store: WeightStore) -> list[ModelName]:
    """Every model with a manifest, by name."""
    suffix = "/" + MANIFEST
    found = []
    for info in store.list(ROOT + "/"):
        parts = info.key.split("/")
        if len(parts) == 4 and info.key.endswith(suffix):
            found.append(ModelName(parts[1], parts[2]))
    return sorted(found, key=str)
