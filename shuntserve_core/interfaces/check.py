"""What `shuntserve doctor` asks of a machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen
from attrs.validators import in_

if TYPE_CHECKING:
    from shuntserve_core.config import Config

OK, ABSENT, WARNING, PROBLEM = "ok", "absent", "warning", "problem"
STATES = (OK, ABSENT, WARNING, PROBLEM)
"""As it should be; not there, which may be as it should; works, but; will not work."""


@frozen
class Finding:
    """One thing that was looked at."""

    what: str
    """In a word or two."""
    state: str = field(validator=in_(STATES))
    detail: str
    """What was found, on one line."""
    remedy: str = ""
    """What to do about it."""


class Check(Protocol):
    """A check plugin, made without arguments.  It changes nothing, and takes seconds at most."""

    def findings(self, config: Config | None) -> Iterable[Finding]:
        """Look; `config` is the cluster that the machine is meant for, if that is known."""
        ...
