"""A battery as a cloud: mains that fail are a notice, mains that come back withdraw it.

Network UPS Tools and apcupsd can write such a file from a hook: one line, `mains`, or `battery`
with the seconds that are left, such as `battery 240`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import gt

from shuntserve_core.interfaces.check import ABSENT, OK, PROBLEM, Finding
from shuntserve_core.types.spot import SpotEvent

if TYPE_CHECKING:
    from shuntserve_core.config import Config


@frozen
class Ups:
    """The fields are what users may write in a table `[[spot]]` with `name = "ups"`."""

    file: Path
    """File with the state of the battery.  A `Path` is relative to the configuration file."""
    interval: float = field(default=1.0, validator=gt(0.0))
    """Seconds between looks at it."""

    on_node = True
    """Each workstation has a battery of its own."""

    async def events(self, nodes: Sequence[str]) -> AsyncIterator[SpotEvent]:
        """What changes; a file that cannot be read changes nothing."""
        said = "mains"
        while True:
            now = _read(self.file) or said
            if now != said and now.startswith("battery"):
                _, _, left = now.partition(" ")
                # Without the seconds, `default_notice` of the table counts.
                deadline = time.time() + float(left) if left.strip().isdigit() else None
                yield SpotEvent(nodes[0], "notice", deadline, source="ups")
            elif now != said:
                yield SpotEvent(nodes[0], "withdrawn", source="ups")
            said = now
            await asyncio.sleep(self.interval)


class UpsCheck:
    """What `shuntserve doctor` says of the file.  Checks are made without arguments."""

    def findings(self, config: Config | None) -> Iterator[Finding]:
        """Look at the file that the configuration names."""
        tables = config.document.spot if config else ()
        named = [table.options.get("file") for table in tables if table.name == "ups"]
        if config is None or not named:
            yield Finding("battery", ABSENT, "no configuration names one")
        for name in named:
            file = config.file.parent / str(name) if config else Path(str(name))
            state = _read(file)
            if state:
                yield Finding("battery", OK, state)
            else:
                yield Finding("battery", PROBLEM, f"{file} says nothing", "start the UPS daemon")


def _read(file: Path) -> str:
    try:
        return " ".join(file.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError):
        return ""
