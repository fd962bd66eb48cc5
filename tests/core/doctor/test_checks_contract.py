"""Every bundled check passes the contract that plugin authors are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from shuntserve_core.config import Config, load_config
from shuntserve_core.doctor.machine import Machine
from shuntserve_core.interfaces.check import Check
from shuntserve_core.registry import Registry
from shuntserve_core.testing.checks import CheckContract

ROOT = Path(__file__).parents[3]
NAMES = sorted(Registry().entries("check"))
NO_CLOUD = """
[[spot]]
name = "aws"
endpoint = "http://127.0.0.1:1"
"""


class OfACluster(CheckContract):
    """With a configuration whose nodes, weights and cloud are not here."""

    @pytest.fixture(autouse=True)
    def cluster(self, tmp_path: Path) -> None:
        file = tmp_path / "cluster.toml"
        text = (ROOT / "examples" / "paper-qwen3-32b.toml").read_text()
        weights = '[weights]\nstore = "none"\nmodel = "a/b"\n[frontdoor]\nport = 0\n'
        file.write_text(text + weights + NO_CLOUD)
        self.loaded = load_config(file)

    def config(self) -> Config:
        return self.loaded


class TestMachine(OfACluster):
    def make_check(self) -> Check:
        return Machine()


@pytest.mark.parametrize("name", NAMES)
class TestBundled(OfACluster):
    @pytest.fixture(autouse=True)
    def named(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        # No test asks the cloud that it may run in.
        monkeypatch.setattr("shuntserve_plugins.clouds.doctor._ENDPOINT", "http://127.0.0.1:1")
        self.check = Registry().get("check", name)

    def make_check(self) -> Check:
        return self.check()


def test_there_are_some() -> None:
    assert {"aws", "gpu", "vllm", "weights"} <= set(NAMES)
