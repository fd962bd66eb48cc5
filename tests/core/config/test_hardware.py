"""Hardware in the file, prices, and what plugins a file leaves out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shuntserve_core.config import estimator_from, load_config, optimizer_from, problem_from
from shuntserve_core.errors import UserError

WriteConfig = Callable[..., Path]
L40S = '[[gpu]]\nname = "L40S"\nmemory_bytes = 99e9\nmemory_bandwidth = 1e12\n'


def test_prices_by_market(write_config: WriteConfig) -> None:
    def price(line: str) -> float:
        text = f'[[cluster]]\ninstance = "g6e.xlarge"\ncount = 1\n{line}\n'
        return load_config(write_config(cluster=text)).cluster.prices["g6e.xlarge"]

    assert price("") == price('market = "spot"') == 0.704
    assert price('market = "on-demand"') == 1.861
    assert price("price = 0.5") == 0.5


def test_own_machines_have_one_price(write_config: WriteConfig) -> None:
    text = '[[instance_type]]\nname = "box"\ngpu = "L4"\nprice = 0.3\n'
    cluster = '[[cluster]]\ninstance = "box"\ncount = 1\n'
    assert load_config(write_config(text, cluster=cluster)).cluster.prices == {"box": 0.3}


def test_a_gpu_in_the_file_replaces_the_registered_one(write_config: WriteConfig) -> None:
    config = load_config(write_config(L40S + "flops = { float16 = 2e14 }\n"))
    assert config.gpus["L40S"].memory_bytes == 99_000_000_000
    assert config.cluster.catalog["g6e.xlarge"].gpu.memory_bytes == 99_000_000_000
    assert config.instance_types["g6e.48xlarge"].gpu.flops == {"float16": 2e14}


def test_a_disabled_plugin_is_gone(write_config: WriteConfig) -> None:
    with pytest.raises(UserError, match="unknown optimizer") as caught:
        optimizer_from(load_config(write_config('[plugins]\ndisable = ["bundled-optimizers"]\n')))
    assert "none is available" in caught.value.remedy


def test_the_problem_is_what_the_file_says(write_config: WriteConfig) -> None:
    extra = "[optimizer]\nwhole_instances = true\ntime_limit = 7\nseed = 3\n"
    config = load_config(write_config(extra + "[objective]\nbudget = 4\n"))
    problem = problem_from(config)
    assert problem.cluster == config.cluster
    assert problem.objective.budget == 4
    assert problem.estimator_name == "paper"
    assert problem.estimator.model == config.model
    assert (problem.whole_instances, problem.time_limit, problem.seed) == (True, 7, 3)
    assert problem_from(config, whole_instances=False).whole_instances is False


def test_options_go_to_the_plugin_that_the_file_names(write_config: WriteConfig) -> None:
    def fits(text: str, name: str | None = None) -> int:
        config = load_config(write_config(estimator=text))
        bound = estimator_from(config, name)
        from shuntserve_core.interfaces.estimator import Position
        from shuntserve_core.types import StageKind

        kind = StageKind("g6e.xlarge", 1)
        return int(bound.batch_limit(kind, Position(first=True, last=False))[16])

    usual = fits('[estimator]\nname = "paper"\n')
    more = fits('[estimator]\nname = "paper"\nmemory_fraction = 0.95\n')
    assert more > usual
    assert fits('[estimator]\nname = "roofline"\n', "paper") == usual


def test_another_optimizer_by_name(write_config: WriteConfig) -> None:
    config = load_config(write_config())
    assert type(optimizer_from(config, "single-pipeline")).__name__ == "SinglePipeline"
    with pytest.raises(UserError, match="unknown optimizer"):
        optimizer_from(config, "nothing")
