"""Agents on the machines of a Ray cluster: here two raylets on one machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(300)
def test_agents_come_and_go_with_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    (tmp_path / "state").mkdir()
    command = [sys.executable, "-m", "tests.plugins.launchers.ray_machines"]
    command.append(str(tmp_path / "state"))
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    lines = [line for line in result.stdout.splitlines() if line.startswith("FACTS ")]
    assert lines, result.stderr[-2000:]
    facts = json.loads(lines[0].removeprefix("FACTS "))
    assert len(facts["contract"]) == 6
    assert facts["gpus"] == 3
    assert facts["without the secret"] == 401
    assert facts["adopted"] == ["solo#0", "trio#0"]
    assert facts["after terminate"] == ["trio#0"]
    assert "no machine took huge#0" in facts["no such machine"]
    assert facts["agent dies with its machine"]
    assert facts["logs stay"]
    head, *quoted = facts["agent that ends"].splitlines()
    assert re.match(r"the agent of odd#0 did not start on .*; see there .*/odd#0/agent\.log", head)
    assert "invalid int value: 'many'" in quoted[-1]
