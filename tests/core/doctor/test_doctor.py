"""`shuntserve doctor`: what it finds, what it says to do, and that it survives its own plugins."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shuntserve_core.cli import cli
from shuntserve_core.config import load_config
from shuntserve_core.doctor import examine
from shuntserve_core.doctor.machine import clock
from shuntserve_core.hookspecs import Provider, hookimpl
from shuntserve_core.interfaces.check import Finding
from shuntserve_core.registry import Registry

BUNDLED = {"SHUNTSERVE_DISABLE_PLUGINS": "bundled-clouds"}
"""No test asks the cloud that it may run in."""


class Broken:
    """A check that fails."""

    def findings(self, config: object) -> Iterator[Finding]:
        raise RuntimeError("no such thing")
        yield


@hookimpl
def shuntserve_register_checks() -> Iterator[Provider]:
    yield Provider("broken", f"{__name__}:Broken", "fails")


def test_it_looks_at_everything_and_says_so_as_json() -> None:
    result = CliRunner().invoke(cli, ["doctor", "--json"], env=BUNDLED)
    report = json.loads(result.stdout)
    names = [check["check"] for check in report["checks"]]
    assert names == ["machine", "gpu", "vllm", "weights", "plugins"]
    looked_at = {finding["what"] for finding in report["checks"][0]["findings"]}
    assert {"Python", "memory", "disk", "open files", "loopback", "clock"} <= looked_at
    assert result.exit_code == (0 if report["ok"] else 1)


def test_people_read_what_to_do() -> None:
    result = CliRunner().invoke(cli, ["doctor"], env=BUNDLED)
    assert "weights: no configuration names any\n           -> give it a CONFIG" in result.stdout


def test_a_check_that_fails_is_reported_by_name() -> None:
    plugin = sys.modules[__name__]
    registry = Registry(disabled=["bundled-clouds"], extra={"mine": plugin})
    found = {one.check: one for one in examine(registry)}
    assert not found["broken"].sound
    assert "RuntimeError: no such thing" in found["broken"].findings[0].detail
    assert found["machine"].sound


def test_a_port_that_is_taken_and_weights_that_are_not_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = load_config(_config(tmp_path, taken.getsockname()[1]), Registry())
        found = {one.check: one for one in examine(Registry(disabled=["bundled-clouds"]), config)}
    door = next(f for f in found["machine"].findings if f.what == "front door")
    assert door.state == "problem"
    assert not found["weights"].sound


def _config(directory: Path, port: int) -> Path:
    text = Path("examples/quickstart.toml").read_text()
    text = text.replace("../.quickstart/weights", str(directory / "nothing"))
    text = text.replace("../.quickstart/SmolLM2-135M-Instruct", str(_model(directory)))
    path = directory / "cluster.toml"
    path.write_text(text.replace("port = 8000", f"port = {port}"))
    return path


def _model(directory: Path) -> Path:
    facts: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 300,
        "max_position_embeddings": 2048,
    }
    (directory / "config.json").write_text(json.dumps(facts))
    return directory


@pytest.mark.parametrize(("state", "expected"), [(0, "ok"), (5, "warning"), (None, "warning")])
def test_the_clock(state: int | None, expected: str) -> None:
    assert clock(state).state == expected
