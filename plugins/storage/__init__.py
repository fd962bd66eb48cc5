"""Weight stores that come with shuntserve."""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve_core.hookspecs import Provider, hookimpl


@hookimpl
def shuntserve_register_weight_stores() -> Iterable[Provider]:
    """Local directories and S3."""
    return [
        Provider(
            "file",
            "shuntserve_plugins.storage.directory:DirectoryStore",
            "A directory: file:///path, or just the path",
        ),
        Provider(
            "s3",
            "shuntserve_plugins.storage.s3:S3Store",
            "S3 and what speaks its protocol: s3://bucket/prefix?endpoint=URL",
        ),
    ]


@hookimpl
def shuntserve_register_checks() -> Iterable[Provider]:
    """Whether weights can be read."""
    here = "shuntserve_plugins.storage"
    yield Provider("weights", f"{here}.doctor:Weights", "Whether the weight store answers")
