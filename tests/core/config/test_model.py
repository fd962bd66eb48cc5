"""`[model]`: where the facts come from, and which of them win."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shuntserve_core.config import load_config
from shuntserve_core.config.model_facts import bundled_models, facts_from_config, facts_of
from shuntserve_core.errors import UserError

WriteConfig = Callable[..., Path]
QWEN = {
    "model_type": "qwen3",
    "num_hidden_layers": 2,
    "hidden_size": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def folder_with(tmp_path: Path, **changes: Any) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**QWEN, **changes}))
    return folder


@pytest.mark.parametrize(
    ("name", "layers", "parameters"),
    [
        ("meta-llama/Llama-3.1-8B", 32, 8.03e9),
        ("meta-llama/Llama-3.1-70B", 80, 70.55e9),
        ("meta-llama/Llama-3.1-405B", 126, 405.9e9),
        ("Qwen/Qwen3-8B", 36, 8.19e9),
        ("Qwen/Qwen3-14B", 40, 14.77e9),
        ("Qwen/Qwen3-32B", 64, 32.76e9),
        ("HuggingFaceTB/SmolLM2-135M", 30, 134.5e6),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 30, 134.5e6),
    ],
)
def test_models_that_come_along(
    name: str, layers: int, parameters: float, write_config: WriteConfig
) -> None:
    """The parameters that the models' authors state, to the digits that they state."""
    workload = "[workload]\ninput_tokens=10\noutput_tokens=10"
    config = load_config(write_config(model=f'[model]\nname="{name}"', workload=workload))
    assert config.model.name == name
    assert config.model.layers == layers
    assert config.model.parameters == pytest.approx(parameters, rel=2e-3)


@pytest.mark.parametrize("short", ["llama-3.1-70b", "Llama-3.1-70B", "META-LLAMA/llama-3.1-70b"])
def test_short_names(short: str) -> None:
    assert facts_of(short, base=Path())[0] == "meta-llama/Llama-3.1-70B"


def test_a_folder_by_path_or_name(tmp_path: Path, write_config: WriteConfig) -> None:
    folder_with(tmp_path)
    for key in ("path", "name"):
        model = load_config(write_config(model=f'[model]\n{key}="weights"')).model
        assert (model.family, model.layers, model.head_dim) == ("qwen3", 2, 32)
        assert model.tied_embeddings
        assert model.dtype == model.weight_dtype == model.kv_dtype == "bfloat16"


def test_head_dim_is_not_derived_where_it_is_given(
    tmp_path: Path, write_config: WriteConfig
) -> None:
    folder_with(tmp_path)
    model = load_config(write_config(model='[model]\npath="weights"')).model
    assert model.head_dim == 32 != model.hidden // model.heads
    model = load_config(write_config(model='[model]\npath="weights"\nhead_dim=8')).model
    assert model.head_dim == 8


def test_facts_alone_make_a_model(write_config: WriteConfig) -> None:
    text = '[model]\nname="mine"\nlayers=2\nhidden=96\nheads=6\nkv_heads=2\nintermediate=9\nvocab=9'
    model = load_config(write_config(model=text)).model
    assert (model.name, model.head_dim, model.dtype) == ("mine", 16, "float16")


def test_quantised_weights_and_kv(write_config: WriteConfig) -> None:
    text = '[model]\nname="Qwen3-8B"\nweight_dtype="int4"\nkv_dtype="fp8"'
    file = write_config(model=text, estimator="")
    model = load_config(file).model
    full = load_config(write_config(model='[model]\nname="Qwen3-8B"')).model
    assert model.layer_bytes == full.layer_bytes / 4
    assert model.kv_bytes_per_token == full.kv_bytes_per_token / 2


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4"),
    ],
)
def test_quantised_checkpoints(quantization: dict[str, Any], dtype: str) -> None:
    assert facts_from_config({**QWEN, "quantization_config": quantization})["weight_dtype"] == dtype


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mixtral"}, "not a dense decoder"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"quantization_config": {"quant_method": "new"}}, "quantisation 'new'"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        facts_from_config({**QWEN, **changes})
    assert caught.value.remedy


def test_a_config_that_is_no_json(tmp_path: Path, write_config: WriteConfig) -> None:
    (folder_with(tmp_path) / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_config(write_config(model='[model]\npath="weights"'))


def test_the_hub_when_it_is_out_of_reach(write_config: WriteConfig) -> None:
    with pytest.raises(UserError, match=r'cannot fetch config\.json of "some/model"') as caught:
        load_config(write_config(model='[model]\nname="some/model"'))
    assert "path" in caught.value.remedy


def test_the_hub_when_it_answers(
    tmp_path: Path, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder_with(tmp_path) / "config.json"
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, filename: str(file))
    assert load_config(write_config(model='[model]\nname="some/model"')).model.layers == 2


def test_every_model_that_comes_along_is_sound() -> None:
    for name, facts in bundled_models().items():
        read = facts_from_config(facts)
        assert read["head_dim"] * read["heads"] >= read["hidden"], name
        assert read["heads"] % read["kv_heads"] == 0, name
