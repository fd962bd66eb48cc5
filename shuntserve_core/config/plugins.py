"""`[plugins]`: which plugins to leave out, and which must work."""

from __future__ import annotations

from attrs import frozen

from shuntserve_core.config.mistakes import Mistakes
from shuntserve_core.errors import did_you_mean
from shuntserve_core.registry import Registry


@frozen
class PluginsTable:
    """Plugins by the names that `shuntserve plugins` shows, or `PACKAGE:NAME` where two packages
    have one of the same name."""

    disable: tuple[str, ...] = ()
    """Plugins to leave out, even if they are installed."""
    require: tuple[str, ...] = ()
    """Plugins without which this file makes no sense; one that is missing, disabled or failed to
    load is an error."""


def check_required(table: PluginsTable, registry: Registry, mistakes: Mistakes) -> None:
    """Note every required plugin that cannot be used, and every name that does not exist."""
    found = {name for plugin in registry.plugins for name in (plugin.name, plugin.key)}
    known = {plugin.name for plugin in registry.plugins}
    for key, names in (("disable", table.disable), ("require", table.require)):
        for index, name in enumerate(names):
            if name not in found:
                where = f"plugins.{key}[{index}]"
                mistakes.add(where, f'no plugin "{name}" is installed', did_you_mean(name, known))
    for index, name in enumerate(table.require):
        if name in found and (reason := _trouble(name, registry)):
            remedy = "mend or enable it, or take it off this list"
            mistakes.add(f"plugins.require[{index}]", f'"{name}" cannot be used: {reason}', remedy)


def _trouble(name: str, registry: Registry) -> str:
    for plugin in registry.plugins:
        if name in (plugin.name, plugin.key):
            reason = "it is disabled" if plugin.disabled else registry.failures.get(plugin.key, "")
            if reason:
                return reason
    return ""
