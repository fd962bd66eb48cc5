"""The pages: they build without a warning, and what they tell the reader to type works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tomli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "examples").rglob("README.md"))
PAGES = [page for page in PAGES if "generated" not in page.parts and "_build" not in page.parts]
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
QUICK = ("plan", "check", "estimate", "compare", "schema", "plugins", "layer", "simulate")
"""Commands that are run here; those that serve or move weights have tests of their own."""


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every block in a language."""
    found = []
    for page in PAGES:
        for name, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            if name == language:
                found.append((str(page.relative_to(ROOT)), text))
    return found


def commands() -> list[tuple[str, str]]:
    """(page, line) of every command that plans, out of all shell blocks."""
    lines = []
    for page, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = line.split()
            if "third-party" in line:  # needs that package: tests/examples runs it
                continue
            if words[:1] == ["shuntserve"] and len(words) > 1 and words[1] in QUICK:
                lines.append((page, line.strip()))
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: the examples, and the files that the pages have the reader write."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "examples").symlink_to(ROOT / "examples")
    tutorial = (ROOT / "docs" / "tutorial" / "first-plan.md").read_text(encoding="utf-8")
    [mine] = [text for name, text in BLOCK.findall(tutorial) if name == "toml"]
    (folder / "mine.toml").write_text(mine)
    return folder


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda value: str(value)[-60:])
def test_commands_in_the_pages(page: str, line: str, folder: Path) -> None:
    words = shlex.split(line, comments=True)
    done = subprocess.run(
        [sys.executable, "-m", "shuntserve_core.cli", *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{page}: {line}\n{done.stderr}"
    assert done.stdout


@pytest.mark.parametrize(("page", "text"), blocks("console"), ids=lambda value: str(value)[:40])
def test_sessions_in_the_pages(page: str, text: str, folder: Path) -> None:
    """A command after `$`, and some of its output up to a line of dots."""
    command, *shown = text.splitlines()
    words = shlex.split(command.removeprefix("$ "))
    if words[:1] != ["shuntserve"] or words[1] not in QUICK:
        return
    done = subprocess.run(
        [sys.executable, "-m", "shuntserve_core.cli", *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    missing = [line for line in shown if line not in (*printed, "...")]
    assert missing == [], page


@pytest.mark.parametrize(("page", "text"), blocks("toml"), ids=lambda value: str(value)[:40])
def test_toml_in_the_pages(page: str, text: str) -> None:
    indent = len(text) - len(text.lstrip(" "))
    assert tomli.loads("\n".join(line[indent:] for line in text.splitlines())), page


def test_the_pages_build(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", tmp_path / "html"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "optimizer" in (tmp_path / "html/reference/configuration.html").read_text("utf-8")
