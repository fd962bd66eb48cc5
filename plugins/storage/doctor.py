"""What `shuntserve doctor` says of the weight store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shuntserve_core.config.fields import resolved
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.check import ABSENT, OK, PROBLEM, Finding
from shuntserve_core.weights import load_manifest, open_store, parse_model_name

if TYPE_CHECKING:
    from shuntserve_core.config import Config


class Weights:
    """Whether the model's weights can be read from here."""

    def findings(self, config: Config | None) -> Iterator[Finding]:
        """Read the manifest, with the credentials that nodes would use."""
        table = config.document.weights if config else None
        if config is None or table is None:
            yield Finding("weights", ABSENT, "no configuration names any", "give it a CONFIG")
            return
        url = table.store
        if "://" not in url:
            url = str(resolved(config.file.parent, url).resolve())
        try:
            store = open_store(url, config.registry)
            try:
                manifest = load_manifest(store, parse_model_name(table.model))
            finally:
                store.close()
        except UserError as error:
            remedy = error.remedy or "check the URL, the credentials and the model's name"
            yield Finding("weights", PROBLEM, f"{error.where}: {error.message}", remedy)
            return
        degrees = ", ".join(map(str, manifest.degrees))
        yield Finding("weights", OK, f"{table.model} in {url}, cut for degrees {degrees}")
