"""The files that tools outside the repository read: each is what its reader expects."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_scripts_that_exist(path: Path) -> None:
    jobs = read(path)["jobs"]
    runs = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    scripts = [word for run in runs for word in run.split() if re.match(r"(tools|\.ci)/", word)]
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o100, script
    assert scripts


def test_every_supported_python_is_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tried = read(ROOT / ".github/workflows/ci.yml")["jobs"]["wheel"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={tried[0]}"
    assert [int(version.split(".")[1]) for version in tried] == list(range(11, 11 + len(tried)))


def test_commit_hooks_call_the_tools_of_the_environment() -> None:
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    entries = {hook["id"]: hook["entry"].split() for hook in repository["hooks"]}
    assert set(entries) == {"ruff-check", "ruff-format", "mypy"}
    for tool, *_ in entries.values():
        assert Path(tool).parent == Path(".venv/bin")
        assert shutil.which(Path(tool).name), tool


def test_the_docs_build_elsewhere_as_they_do_here() -> None:
    document = read(ROOT / ".readthedocs.yaml")
    assert (ROOT / document["sphinx"]["configuration"]).is_file()
    for line in document["build"]["jobs"]["install"]:
        for file in re.findall(r"requirements/\S+", line):
            assert (ROOT / file).is_file()


@pytest.mark.parametrize("name", ["bug.yml", "idea.yml"])
def test_issue_forms_name_what_they_ask(name: str) -> None:
    form = read(ROOT / ".github" / "ISSUE_TEMPLATE" / name)
    assert form["name"]
    assert form["description"]
    assert all(item["attributes"]["label"] for item in form["body"])
