"""`[model]`: where the facts come from, and which of them win."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shuntserve_core.config import load_config, model_facts
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
        ({"model_type": "gemma"}, "not a dense decoder"),
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
    monkeypatch.setattr(model_facts, "fetch", lambda asked: folder_with(tmp_path))
    assert load_config(write_config(model='[model]\nname="some/model"')).model.layers == 2


def test_every_model_that_comes_along_is_sound() -> None:
    for name, facts in bundled_models().items():
        read = facts_from_config(facts)
        assert read["head_dim"] * read["heads"] >= read["hidden"], name
        assert read["heads"] % read["kv_heads"] == 0, name


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
GROUPS = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "group_size": 32, "symmetric": True},
        }
    },
    "ignore": ["lm_head", "re:.*self_attn.*"],
}
EIGHT = {"config_groups": {"g": {"weights": {"num_bits": 8, "type": "float"}}}}
ONE_OF_TWO_LAYERS = {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "model.layers.1"]}
NVFP4 = {
    "producer": {"name": "modelopt"},
    "quantization": {"quant_algo": "NVFP4", "group_size": 16},
}
MATRICES = {"attention": 2 * 96 * 192 + 2 * 96 * 64, "mlp": 3 * 96 * 128}


@pytest.mark.parametrize(
    ("changes", "method", "dtype", "scale", "left"),
    [
        ({"quantization_config": AWQ}, "awq", "int4", 2.5 / 128, 0.0),
        (
            {"quantization_config": GROUPS},
            "compressed-tensors",
            "int4",
            2 / 32,
            MATRICES["attention"] / sum(MATRICES.values()),
        ),
        ({"compression_config": EIGHT}, "compressed-tensors", "fp8", 0.0, 0.0),
        ({"quantization_config": ONE_OF_TWO_LAYERS}, "fp8", "fp8", 0.0, 0.5),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            "fp8",
            "fp8",
            4 / 128**2,
            0.0,
        ),
        (
            {
                "quantization_config": {
                    "bits": 8,
                    "group_size": 64,
                    "dynamic": {r"-:.*\.down.*": {}},
                }
            },
            "without a name",
            "int8",
            2 / 64,
            96 * 128 / sum(MATRICES.values()),
        ),
    ],
)
def test_scales_and_layers_left_as_they_were_count(
    changes: dict[str, Any], method: str, dtype: str, scale: float, left: float, tmp_path: Path
) -> None:
    facts = facts_from_config({**QWEN, **changes})
    assert (facts["quantization"], facts["weight_dtype"]) == (method, dtype)
    assert facts["scale_bytes"] == pytest.approx(scale)
    assert facts["unquantised"] == pytest.approx(left)


def test_bytes_of_a_weight_count_scales_and_what_is_left(write_config: WriteConfig) -> None:
    folder_with(write_config().parent, quantization_config=GROUPS)
    model = load_config(write_config(model='[model]\npath="weights"', estimator="")).model
    left = MATRICES["attention"] / sum(MATRICES.values())
    assert model.bytes_per_weight == pytest.approx(2 * left + (0.5 + 2 / 32) * (1 - left))
    assert model.layer_bytes == pytest.approx(model.layer_parameters * model.bytes_per_weight)


def test_what_model_optimizer_writes_beside_the_config(write_config: WriteConfig) -> None:
    folder = folder_with(write_config().parent)
    (folder / "hf_quant_config.json").write_text(json.dumps(NVFP4))
    model = load_config(write_config(model='[model]\npath="weights"', estimator="")).model
    assert (model.quantization, model.weight_dtype) == ("modelopt", "int4")
    assert model.scale_bytes == pytest.approx(1 / 16)


@pytest.mark.parametrize("by", ["path", "name"])
def test_the_remedy_for_an_unknown_quantisation_works(by: str, write_config: WriteConfig) -> None:
    folder_with(write_config().parent, quantization_config={"quant_method": "new"})
    text = f'[model]\n{by}="weights"\n'
    with pytest.raises(UserError, match="quantisation 'new'") as caught:
        load_config(write_config(model=text))
    assert 'weight_dtype = "fp8"' in caught.value.remedy
    model = load_config(write_config(model=text + 'weight_dtype = "fp8"', estimator="")).model
    assert (model.weight_dtype, model.quantization) == ("fp8", "new")


FACTS = "layers=2\nhidden=96\nheads=6\nkv_heads=2\nintermediate=128\nvocab=1000\n"


@pytest.mark.parametrize("by", ["path", "name"])
def test_the_remedy_for_an_unknown_type_works(by: str, write_config: WriteConfig) -> None:
    folder_with(write_config().parent, model_type="gemma", num_hidden_layers="many")
    text = f'[model]\n{by}="weights"\n'
    with pytest.raises(UserError, match="'gemma'") as caught:
        load_config(write_config(model=text))
    assert "layers, hidden" in caught.value.remedy
    assert load_config(write_config(model=text + FACTS)).model.layers == 2


@pytest.mark.parametrize("by", ["path", "name"])
@pytest.mark.parametrize(
    "changes", [{"model_type": "qwen3_moe"}, {"model_type": "mixtral"}, {"num_local_experts": 8}]
)
def test_facts_make_no_dense_model_of_a_mixture_of_experts(
    by: str, changes: dict[str, Any], write_config: WriteConfig
) -> None:
    folder_with(write_config().parent, **changes)
    with pytest.raises(UserError, match="mixture of experts") as caught:
        load_config(write_config(model=f'[model]\n{by}="weights"\n{FACTS}weight_dtype="fp8"'))
    assert "dense model" in caught.value.remedy
