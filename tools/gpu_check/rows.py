"""What a part finds: one row a check, written down at once, so that a crash loses nothing."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen

PASSED, FAILED, SKIPPED, MEASURED = "passed", "failed", "skipped", "measured"

Figure = float | int | str
Figures = dict[str, Figure]


class Skip(Exception):
    """A check cannot run here; the message says why."""


class CheckFailed(Exception):
    """What was expected is not so."""


def expect(holds: bool, otherwise: str) -> None:
    """Fail the check unless it holds."""
    if not holds:
        raise CheckFailed(otherwise)


@frozen
class Row:
    """One check."""

    part: str
    check: str
    outcome: str
    figures: Figures = field(factory=dict)
    """By name; the name ends with the unit."""
    note: str = ""
    """Why it failed or was skipped."""
    seconds: float = 0.0


class Record:
    """The rows of a part, as lines of JSON in a file."""

    def __init__(self, part: str, path: Path) -> None:
        self._part, self._path = part, path

    def add(self, check: str, outcome: str, figures: Figures, note: str = "") -> None:
        """Write a row."""
        row = Row(self._part, check, outcome, figures, note)
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    @contextmanager
    def check(self, name: str, *, passes: str = PASSED) -> Iterator[Figures]:
        """A check that passes if the block ends, and whose failure does not end the part."""
        figures: Figures = {}
        try:
            yield figures
        except Skip as reason:
            self.add(name, SKIPPED, figures, str(reason))
        except CheckFailed as reason:
            self.add(name, FAILED, figures, str(reason))
        except Exception as error:
            traceback.print_exc()
            self.add(name, FAILED, figures, f"{type(error).__name__}: {error}"[:500])
        else:
            self.add(name, passes, figures)

    def measure(self, name: str) -> Any:
        """As `check`, where there is nothing to be right or wrong, only figures."""
        return self.check(name, passes=MEASURED)


def read_rows(path: Path) -> list[Row]:
    """The rows of a part, as many as it wrote."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Row(**json.loads(line)) for line in lines if line.endswith("}")]
