"""Spot sources, bundled."""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve_core.hookspecs import Provider, hookimpl


@hookimpl
def shuntserve_register_spot_sources() -> Iterable[Provider]:
    """A recorded trace, and what AWS tells an instance about itself."""
    here = "shuntserve_plugins.clouds"
    yield Provider("trace", f"{here}.trace:TraceReplay", "Events of a recorded trace")
    yield Provider("aws", f"{here}.aws:InstanceMetadata", "EC2 instance metadata, on each node")


@hookimpl
def shuntserve_register_checks() -> Iterable[Provider]:
    """Whether notices would be heard."""
    here = "shuntserve_plugins.clouds"
    yield Provider("aws", f"{here}.doctor:MetadataService", "Whether EC2 answers this instance")
