"""`shuntserve plugins`, and leaving plugins out."""

from __future__ import annotations

import os

import pytest

from shuntserve_core.registry import DISABLE_VARIABLE
from tests.core.cli.conftest import Shuntserve


def test_every_kind_name_package_and_version(shuntserve: Shuntserve) -> None:
    outcome = shuntserve("plugins", "--json")
    assert outcome.code == 0
    provides = {(row["kind"], row["name"]): row for row in outcome.json["provides"]}
    row = provides["optimizer", "beam-search"]
    assert row["package"] == "shuntserve"
    assert row["version"]
    assert row["target"].endswith(":BeamSearch")
    assert row["summary"]
    assert all(not plugin["error"] for plugin in outcome.json["plugins"])


def test_for_people(shuntserve: Shuntserve) -> None:
    outcome = shuntserve("--disable-plugin", "bundled-storage", "plugins")
    assert "bundled-storage  shuntserve" in outcome.out
    assert "(disabled)" in outcome.out
    assert "A10G" in outcome.out
    assert "weight-store" not in outcome.out


def test_the_flag_reaches_what_the_command_starts(
    shuntserve: Shuntserve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, "by-hand")
    seen: list[str] = []
    monkeypatch.setattr(
        "shuntserve_core.cli.plugins.entry_rows",
        lambda registry: seen.append(os.environ[DISABLE_VARIABLE]) or [],
    )
    shuntserve("--disable-plugin", "bundled-gpus", "--disable-plugin", "other", "plugins")
    assert seen == ["by-hand,bundled-gpus,other"]
    assert os.environ[DISABLE_VARIABLE] == "by-hand"


def test_the_flag_disables(shuntserve: Shuntserve) -> None:
    outcome = shuntserve("--disable-plugin", "bundled-gpus", "plugins", "--json")
    assert not [row for row in outcome.json["provides"] if row["kind"] == "gpu"]
    [row] = [row for row in outcome.json["plugins"] if row["name"] == "bundled-gpus"]
    assert row["disabled"]
