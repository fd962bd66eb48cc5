"""What the configuration says of spot sources: which run on nodes, and what a notice leaves."""

from __future__ import annotations

from shuntserve_core.config.build import plugin_from
from shuntserve_core.config.loader import Config
from shuntserve_core.config.options import plain_options
from shuntserve_core.control_plane.policy.notices import DEFAULT_NOTICE
from shuntserve_core.node.watching import SpotWatch


def watches_of(config: Config) -> tuple[SpotWatch, ...]:
    """The sources that every node listens to itself.  Raises `UserError`."""
    watches = []
    for table in config.document.spot:
        source = plugin_from(config, "spot-source", table)
        if source.on_node:
            watches.append(SpotWatch(table.name, plain_options(source), table.default_notice))
    return tuple(watches)


def default_notice(config: Config, source: str) -> float:
    """Seconds that a notice without a deadline leaves: as the table of its source says, where there
    is one by that name, and what AWS documents for words of anybody else."""
    notices = [table.default_notice for table in config.document.spot if table.name == source]
    return min(notices, default=DEFAULT_NOTICE)
