"""The six names that programs use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import shuntserve_core as ss
from shuntserve_core import public
from shuntserve_core.errors import UserError

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def config() -> public.Config:
    return ss.load_config(EXAMPLES / "paper-qwen3-32b.toml")


def test_the_face_is_what_the_library_says() -> None:
    assert set(ss.__all__) - {"__version__"} == set(public.__all__)
    for name in public.__all__:
        assert getattr(ss, name) is getattr(public, name)
        assert getattr(public, name).__doc__
    assert set(public.__all__) <= set(dir(ss))
    with pytest.raises(AttributeError, match="no attribute 'plann'"):
        ss.plann  # type: ignore[attr-defined]  # noqa: B018


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, shuntserve_core; print([m for m in ('numpy', 'cattrs') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plans_with_what_replaces_the_files(config: public.Config) -> None:
    placement = ss.plan(config, optimizer="single-pipeline", estimator="paper")
    assert (placement.optimizer, placement.estimator) == ("single-pipeline", "paper")
    assert placement.throughput_rps < ss.plan(config, estimator="paper").throughput_rps


def test_estimates_pipelines_of_ones_own(config: public.Config) -> None:
    placement = ss.estimate(config, "g6e.xlarge:32,g6e.xlarge:32", "g5.12xlarge/2:64")
    assert [[s.layers for s in p.stages] for p in placement.pipelines] == [[32, 32], [64]]
    with pytest.raises(UserError, match=r"pipeline: the stages hold 32 layers .* add 32"):
        ss.estimate(config, "g6e.xlarge:32")


def test_simulates_a_trace(config: public.Config) -> None:
    trace = EXAMPLES / "traces" / "azure-conversation-2023.csv"
    placement = ss.plan(config, optimizer="single-pipeline")
    result = ss.simulate(config, trace, placement=placement, seconds=60)
    assert result.seconds == 60
    assert result.summary()["finished"] > 0
    lost = ss.simulate(
        config,
        trace,
        placement=placement,
        events=EXAMPLES / "traces" / "paper-interruptions.csv",
        seconds=900,
    )
    assert lost.notes


def test_what_cannot_come_up_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model_dir"), ss.serve(_unservable(tmp_path)):
        raise AssertionError("nothing serves")


def _unservable(folder: Path) -> public.Config:
    text = (EXAMPLES / "quickstart.toml").read_text()
    file = folder / "cluster.toml"
    file.write_text(text.replace("../.quickstart", str(folder)).replace("port = 8000", "port = 0"))
    return ss.load_config(file)
