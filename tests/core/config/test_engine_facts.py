"""What an engine does is said once, in `[engine]`, and the estimator reads it there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from shuntserve_core.config import Config, estimator_from, load_config
from shuntserve_core.config.build import engine_facts, refuse_contradiction
from shuntserve_core.errors import UserError
from shuntserve_core.hookspecs import Provider, hookimpl
from shuntserve_core.interfaces.engine import EngineFacts, WorkerCommand
from shuntserve_core.interfaces.estimator import EngineAware
from shuntserve_core.registry import Registry
from shuntserve_core.simulator.profile import EMBEDDED, VLLM, VLLM_0_8_1
from shuntserve_core.simulator.run import of_engine
from shuntserve_plugins.estimators.roofline.model import EngineSetup, RooflineModel
from shuntserve_plugins.estimators.roofline.options import Roofline
from tests.core.config.conftest import WriteConfig

ROOT = Path(__file__).parents[3]


def setup_of(config: Config) -> EngineSetup:
    bound = estimator_from(config, "roofline")
    assert isinstance(bound, RooflineModel)
    return bound.setup


def config_with(write_config: WriteConfig, extra: str, estimator: str = "") -> Config:
    return load_config(write_config(extra, estimator=f"[estimator]\n{estimator}\n"))


@pytest.mark.parametrize(
    ("engine", "tokens", "sequences", "eager"),
    [
        ('name = "vllm"', 2048, 256, True),
        ('name = "vllm"\nmax_batched_tokens = 512\nenforce_eager = false', 512, 256, False),
        ('name = "embedded"', 64, 256, True),
        ('name = "embedded"\nmax_chunk = 128\n[serve]\nmax_batch = 12', 128, 12, True),
        ('name = "simulated"', 2048, 256, False),
    ],
)
def test_the_estimator_reads_the_engine(
    write_config: WriteConfig, engine: str, tokens: int, sequences: int, eager: bool
) -> None:
    setup = setup_of(config_with(write_config, f"[engine]\n{engine}\n"))
    assert (setup.step_tokens, setup.sequences) == (tokens, sequences)
    assert (setup.eager_layer_seconds > 0) == eager
    assert setup.chunked_prefill


@pytest.mark.parametrize(
    ("estimator", "says"),
    [
        ("max_num_batched_tokens = 64", "64 contradicts [engine], whose options make it 2048"),
        ("eager = false", "false contradicts [engine], whose options make it true"),
        ("chunked_prefill = false", "false contradicts [engine], whose options make it true"),
    ],
)
def test_a_contradiction_is_refused(write_config: WriteConfig, estimator: str, says: str) -> None:
    config = config_with(write_config, '[engine]\nname = "vllm"\n', estimator)
    with pytest.raises(UserError) as caught:
        estimator_from(config)
    key = estimator.partition(" ")[0]
    assert f"{config.file}: estimator.{key}: {says}; leave it out" in str(caught.value)


def test_another_engine_may_be_studied_but_not_served(write_config: WriteConfig) -> None:
    config = config_with(write_config, "", "max_num_batched_tokens = 8192\neager = false")
    setup = setup_of(config)
    assert (setup.step_tokens, setup.eager_layer_seconds) == (8192, 0.0)
    with pytest.raises(UserError, match="8192 contradicts"):
        refuse_contradiction(config)


def test_what_agrees_may_be_said_twice(write_config: WriteConfig) -> None:
    said = "max_num_batched_tokens = 64\nmax_num_seqs = 16"
    serve = '[engine]\nname = "embedded"\n[serve]\nmax_batch = 20\n'
    config = config_with(write_config, serve, said)
    refuse_contradiction(config)
    assert setup_of(config).sequences == 16


def test_an_engine_that_cannot_be_imported_says_nothing(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_with(write_config, '[engine]\nname = "embedded"\n[serve]\nmax_batch = 9\n')
    assert engine_facts(config) == EngineFacts(64, 9, eager=True, chunked_prefill=True)
    monkeypatch.setitem(sys.modules, "shuntserve_plugins.engines.embedded.engine", None)
    assert engine_facts(config) == EngineFacts(sequences=9)


class Vague:
    """An engine that says what is no fact."""

    needs_weights = False
    features: frozenset[str] = frozenset()

    def workers(self, launch: object) -> list[WorkerCommand]:
        return []

    def facts(self) -> object:
        return {"step_tokens": 4}


class Silent:
    """An engine of before engines were asked for facts."""

    needs_weights = False
    features: frozenset[str] = frozenset()

    def workers(self, launch: object) -> list[WorkerCommand]:
        return []


@hookimpl
def shuntserve_register_engines() -> list[Provider]:
    return [Provider("vague", f"{__name__}:Vague"), Provider("silent", f"{__name__}:Silent")]


def test_engines_of_others(write_config: WriteConfig) -> None:
    registry = Registry(extra={"mine": sys.modules[__name__]})
    file = write_config('[engine]\nname = "silent"\n', estimator="[estimator]\n")
    config = load_config(file, registry)
    assert engine_facts(config) == EngineFacts()
    assert setup_of(config).step_tokens == 2048
    config = load_config(write_config('[engine]\nname = "vague"\n', estimator=""), registry)
    with pytest.raises(UserError, match=r"'vague' of package .* `facts` returned a dict, not Eng"):
        estimator_from(config)


def test_every_bundled_engine_that_makes_steps_says_how() -> None:
    registry = Registry()
    facts = {name: registry.get("engine", name)().facts() for name in ("vllm", "embedded")}
    assert all(None not in (f.step_tokens, f.eager, f.chunked_prefill) for f in facts.values())
    assert isinstance(Roofline(), EngineAware)


def test_a_simulation_of_the_engine_reads_it_too(write_config: WriteConfig) -> None:
    engine = '[engine]\nname = "embedded"\nmax_chunk = 32\n[serve]\nmax_batch = 5\n'
    config = config_with(write_config, engine)
    profile = of_engine(config, EMBEDDED)
    assert (profile.step_tokens, profile.sequences) == (32, 5)
    assert profile.estimator_options["max_num_batched_tokens"] == 32
    assert of_engine(config, VLLM) is VLLM
    assert of_engine(config, VLLM_0_8_1) is VLLM_0_8_1
    assert of_engine(config_with(write_config, ""), VLLM) is VLLM


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.toml")), ids=str)
def test_examples_say_it_once(example: Path) -> None:
    text = example.read_text()
    assert "max_num_batched_tokens" not in text
    assert "max_num_seqs" not in text
