"""Whether a machine has what it needs, and what to do where it has not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from shuntserve_core.doctor.machine import Machine
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
    checks: list[tuple[str, Check]] = [("machine", Machine())]
    checks += [(name, registry.get("check", name)()) for name in sorted(registry.entries("check"))]
    examinations = [_examine(name, check, config) for name, check in checks]
    broken = [
        Finding(plugin.name, PROBLEM, plugin.error, f"update or remove {plugin.package}")
        for plugin in registry.plugins
        if plugin.error
    ]
    found = broken or [Finding("plugins", OK, f"{len(registry.plugins)} load")]
    return [*examinations, Examination("plugins", tuple(found))]


def _examine(name: str, check: Check, config: Config | None) -> Examination:
    try:
        findings = tuple(check.findings(config))
    except Exception as error:
        remedy = "report it to the author of the plugin"
        detail = f"the check itself failed: {type(error).__name__}: {error}"
        findings = (Finding(name, PROBLEM, detail, remedy),)
    return Examination(name, findings)
