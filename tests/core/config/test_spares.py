"""`serve.spares` is judged once, when the file is read: every command says the same of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from shuntserve_core.cli import cli
from shuntserve_core.config import load_config
from shuntserve_core.errors import UserError
from shuntserve_core.runtime.serve import place as place_to_serve
from shuntserve_core.simulator.placing import place, spares_of
from tests.core.runtime.clusters import tiny_config, write_config

KEPT = "spares = { small = 1 }"


def with_spares(folder: Path, spares: str) -> Path:
    file = write_config(folder)
    text = file.read_text()
    assert KEPT in text
    file.write_text(text.replace(KEPT, f"spares = {spares}"))
    return file


@pytest.mark.parametrize(
    ("spares", "says"),
    [
        (
            "{ smal = 1 }",
            "serve.spares.smal: \"smal\" is not in the cluster; did you mean 'small'?",
        ),
        (
            "{ small = 9 }",
            "serve.spares.small: 9 of small cannot be kept: there are 3; give 0 to 3",
        ),
        ("{ small = -1 }", "serve.spares.small: -1 of small cannot be kept"),
        ("{ small = 3, big = 2 }", "serve.spares: nothing is left to serve on; keep fewer"),
    ],
)
@pytest.mark.parametrize("command", ["check", "plan", "serve", "simulate"])
def test_every_command_refuses_the_same(
    command: str, spares: str, says: str, tmp_path: Path
) -> None:
    file = with_spares(tmp_path, spares)
    done = CliRunner().invoke(cli, [command, str(file)])
    assert isinstance(done.exception, UserError)
    assert f"{file}: {says}" in str(done.exception)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_config(with_spares(tmp_path, "{ smal = 1, big = 3 }"))
    assert len(str(caught.value).splitlines()) == 2


def test_serve_and_simulate_keep_the_same_nodes(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    served, spares = place_to_serve(config)
    simulated = place(config)
    assert [p.stages for p in served.pipelines] == [p.stages for p in simulated.pipelines]
    assert spares == spares_of(config, simulated) == ("small#2",)
