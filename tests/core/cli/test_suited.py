"""Models that an engine does not run: said by `check`, `plan` and `serve` before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shuntserve_core.config import load_config
from shuntserve_core.errors import UserError
from shuntserve_core.runtime.serve import compare_with_store, settings_of
from tests.core.cli.conftest import Shuntserve
from tests.core.tensorstore.processes import push
from tests.core.weights.models import write_llama

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 1000,
    "rms_norm_eps": 1e-6,
}
FP8 = {"quantization_config": {"quant_method": "fp8"}}


def written(tmp_path: Path, engine: str = "", model: str = "", **changes: Any) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    file = tmp_path / "cluster.toml"
    file.write_text(
        f'[model]\npath = "weights"\n{model}\n'
        "[workload]\ninput_tokens = 100\noutput_tokens = 20\n"
        '[[cluster]]\ninstance = "g6e.xlarge"\ncount = 1\n' + engine
    )
    return file


ENGINES = ["", '[engine]\nname = "embedded"\n', '[engine]\nname = "vllm"\n']
COMMANDS: dict[str, tuple[str, ...]] = {
    "check": (),
    "plan": (),
    "estimate": ("--pipeline", "g6e.xlarge:4"),
    "compare": ("--optimizers", "beam-search"),
    "simulate": ("--rate", "1", "--requests", "3"),
    "layer": ("--gpu", "L40S"),
}
"""Every command that says what a model would do, with the least that it wants."""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_quantised_weights(
    shuntserve: Shuntserve, tmp_path: Path, command: str, engine: str
) -> None:
    refused = shuntserve(command, written(tmp_path, engine, **FP8), *COMMANDS[command])
    assert refused.code == 2
    assert "quantised (fp8)" in refused.err
    assert "plain float16" in refused.err
    assert len(refused.err.splitlines()) == 1
    assert shuntserve(command, written(tmp_path, engine), *COMMANDS[command]).code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_a_study_of_quantised_weights(shuntserve: Shuntserve, tmp_path: Path, command: str) -> None:
    """Whoever says how weights are stored, and has none to serve, gets figures and a word."""
    more = COMMANDS[command]
    file = written(tmp_path, "", 'weight_dtype = "fp8"', quantization_config={"quant_method": "x"})
    taken = shuntserve(command, file, *more)
    assert taken.code == 0
    assert "for planning only" in taken.out + taken.err
    if command == "check":
        (note,) = shuntserve(command, file, "--json").json["notes"]
        assert note.startswith("for planning only")
    serving = '[weights]\nstore = "s"\nmodel = "local/m"\n'
    file = written(tmp_path, serving, 'weight_dtype = "fp8"', **FP8)
    assert shuntserve(command, file, *more).code == 2


def test_a_folder_that_is_named_is_looked_into(shuntserve: Shuntserve, tmp_path: Path) -> None:
    file = written(tmp_path, '[engine]\nname = "embedded"\n', sliding_window=64)
    file.write_text(file.read_text().replace('path = "weights"', 'name = "weights"'))
    refused = shuntserve("check", file)
    assert (refused.code, "sliding_window is 64" in refused.err) == (2, True)


def test_an_engine_without_weights_runs_everything(shuntserve: Shuntserve, tmp_path: Path) -> None:
    file = written(tmp_path, '[engine]\nname = "simulated"\n', **FP8)
    assert shuntserve("check", file).code == 0


@pytest.mark.parametrize(
    ("engine", "changes", "says"),
    [
        ("embedded", {"sliding_window": 64}, "sliding_window"),
        ("embedded", {"model_type": "mistral"}, "'mistral'"),
        ("vllm", {"model_type": "qwen3", "attention_bias": True}, "attention_bias"),
        ("vllm", {"attn_logit_softcapping": 50.0}, "softcapping"),
    ],
)
def test_what_an_engine_does_not_know(
    shuntserve: Shuntserve, tmp_path: Path, engine: str, changes: dict[str, Any], says: str
) -> None:
    refused = shuntserve("check", written(tmp_path, f'[engine]\nname = "{engine}"\n', **changes))
    assert (refused.code, says in refused.err) == (2, True)
    report = shuntserve("check", "--json", tmp_path / "cluster.toml").json
    assert says in report["errors"][0]["message"]
    assert report["errors"][0]["remedy"]


def compared(file: Path, *, running: bool = False) -> None:
    config = load_config(file)
    compare_with_store(config, settings_of(config), running=running)


def test_serve_refuses_another_config_than_the_stores(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = write_llama(tmp_path / "weights", hidden=64, heads=2, head_dim=32)
    name = push(checkpoint, tmp_path / "store", [1])
    (checkpoint / "tokenizer.json").write_text("{}")
    config = (checkpoint / "config.json").read_bytes()
    stored = json.loads(config)
    engine = f'[engine]\nname = "vllm"\n[weights]\nstore = "store"\nmodel = "{name}"\n'
    file = written(tmp_path, engine)
    (checkpoint / "config.json").write_bytes(config)
    compared(file)
    file = written(tmp_path, engine, **{**stored, "rms_norm_eps": 1e-3})
    for running in (False, True):
        with pytest.raises(UserError, match="of another model than the store's weights") as caught:
            compared(file, running=running)
        assert "rms_norm_eps 0.001 instead of" in caught.value.message
        assert "weights pull" in caught.value.remedy
    assert not caplog.records


def test_engines_that_run_do_not_need_the_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = write_llama(tmp_path / "weights", hidden=64, heads=2, head_dim=32)
    (checkpoint / "tokenizer.json").write_text("{}")
    engine = '[engine]\nname = "vllm"\n[weights]\nstore = "away"\nmodel = "local/tiny"\n'
    config = (checkpoint / "config.json").read_bytes()
    file = written(tmp_path, engine)
    (checkpoint / "config.json").write_bytes(config)
    with pytest.raises(UserError, match="cannot be compared"):
        compared(file)
    compared(file, running=True)
    assert "engines that run go on" in caplog.text
