"""Whether a machine has what it needs, and what to do where it has not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from shuntserve_core.doctor.machine import Machine
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.check import OK, PROBLEM, Check, Finding
from shuntserve_core.registry import Registry

if TYPE_CHECKING:
    from shuntserve_core.config import Config

__all__ = ["Examination", "examine"]


@frozen
class Examination:
    """What one check found."""

    check: str
    """Its name: `machine`, or that of a plugin."""
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing stands in the way."""
        return all(finding.state != PROBLEM for finding in self.findings)


def examine(registry: Registry, config: Config | None = None) -> list[Examination]:
    """Run every check; one that fails is a problem of its own."""
    examinations = [_examine("machine", Machine(), config)]
    examinations += [
        _of_plugin(name, registry, config) for name in sorted(registry.entries("check"))
    ]
    broken = [
        Finding(plugin.name, PROBLEM, reason, f"update or remove {plugin.package}")
        for plugin in registry.plugins
        if (reason := registry.failures.get(plugin.key))
    ]
    found = broken or [Finding("plugins", OK, f"{len(registry.plugins)} load")]
    return [*examinations, Examination("plugins", tuple(found))]


def _of_plugin(name: str, registry: Registry, config: Config | None) -> Examination:
    try:
        check = registry.get("check", name)()
    except (UserError, TypeError) as error:  # not to be imported, or not to be made
        finding = Finding(name, PROBLEM, str(error), "report it to the author of the plugin")
        return Examination(name, (finding,))
    return _examine(name, check, config)


def _examine(name: str, check: Check, config: Config | None) -> Examination:
    try:
        findings = tuple(check.findings(config))
    except Exception as error:
        remedy = "report it to the author of the plugin"
        detail = f"the check itself failed: {type(error).__name__}: {error}"
        findings = (Finding(name, PROBLEM, detail, remedy),)
    return Examination(name, findings)
