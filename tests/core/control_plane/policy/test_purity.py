"""Rules that knew a clock, a process or a connection could not be asked twice."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from shuntserve_core.control_plane import policy

FILES = sorted(Path(policy.__file__).parent.glob("*.py"))
PURE = {"__future__", "attrs", "collections", "enum", "typing"}
OURS = ("shuntserve_core.control_plane.policy", "shuntserve_core.types")
OF_THE_PLANNER = ("shuntserve_core.config", "shuntserve_core.errors")


def imported(file: Path) -> set[str]:
    tree = ast.walk(ast.parse(file.read_text()))
    names = [node for node in tree if isinstance(node, ast.Import | ast.ImportFrom)]
    return {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in names
        for alias in node.names
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.name))
def test_the_policy_imports_nothing_that_acts(file: Path) -> None:
    allowed = OURS + (OF_THE_PLANNER if file.name == "planner.py" else ())
    for name in imported(file):
        assert name.split(".")[0] in PURE or name.startswith(allowed), name
