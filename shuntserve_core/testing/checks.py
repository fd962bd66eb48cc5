"""The contract of checks: subclass `CheckContract`, and say which one.

class TestMine(CheckContract):
    def make_check(self):
        return MyCheck()
"""

from __future__ import annotations

import attrs

from shuntserve_core.config import Config
from shuntserve_core.interfaces.check import PROBLEM, STATES, Check, Finding


class CheckContract:
    """What every check of `shuntserve doctor` must do, on whatever machine the test runs."""

    def make_check(self) -> Check:
        """The check, made as `doctor` makes it."""
        raise NotImplementedError

    def config(self) -> Config | None:
        """A configuration of a cluster that the check has a word on, if it looks at any."""
        return None

    def _findings(self) -> list[Finding]:
        configs = [None] if self.config() is None else [None, self.config()]
        return [one for config in configs for one in self.make_check().findings(config)]

    def test_it_is_made_without_arguments(self) -> None:
        """Nothing in a configuration sets options of a check, so it has none."""
        kind = type(self.make_check())
        kind()
        options = [a.name for a in attrs.fields(kind) if a.init] if attrs.has(kind) else []
        assert not options

    def test_it_finds_something(self) -> None:
        """Silence could mean anything."""
        findings = self._findings()
        assert findings
        assert all(isinstance(finding, Finding) for finding in findings)

    def test_findings_are_a_word_and_a_line(self) -> None:
        """They are shown as a table."""
        for finding in self._findings():
            assert finding.state in STATES
            assert 0 < len(finding.what) <= 40
            assert finding.detail
            assert not set("\n\r") & set(finding.what + finding.detail + finding.remedy)

    def test_problems_have_a_remedy(self) -> None:
        """Whoever is told that something will not work is told what to do."""
        problems = [finding for finding in self._findings() if finding.state == PROBLEM]
        assert all(finding.remedy for finding in problems), problems

    def test_it_changes_nothing(self) -> None:
        """Looking again finds the same things."""
        first, second = self._findings(), self._findings()
        assert [(f.what, f.state) for f in first] == [(f.what, f.state) for f in second]
