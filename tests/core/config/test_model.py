"""`[model]`: where the facts come from, and which of them win."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shuntserve_core.config import load_config, model_facts
from shuntserve_core.config.model_facts import bundled_models, facts_from_config, facts_of
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.estimator import Position
from shuntserve_plugins.estimators.roofline.memory import Memory, Runtime

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


MIXED = {
    "config_groups": {
        "group_0": {
            "targets": ["re:.*mlp.*"],
            "weights": {"num_bits": 4, "type": "int", "group_size": 64, "symmetric": False},
        },
        "group_1": {"targets": ["re:.*q_proj"], "weights": {"num_bits": 8, "type": "float"}},
    }
}
BY_LAYER = {
    "quantization": {
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"model.layers.1.mlp.down_proj": {"quant_algo": "FP8"}},
    }
}
Q, DOWN, ALL = 96 * 192, 96 * 128, sum(MATRICES.values())
PLAIN = 2.0


@pytest.mark.parametrize(
    ("changes", "method", "dtype", "each"),
    [
        ({"quantization_config": AWQ}, "awq", "int4", [0.5 + 2.5 / 128] * 2),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
            "gptq",
            "int4",
            [0.5 + 2.5 / 128] * 2,
        ),
        (
            {"quantization_config": GROUPS},
            "compressed-tensors",
            "int4",
            [(PLAIN * MATRICES["attention"] + (0.5 + 2 / 32) * MATRICES["mlp"]) / ALL] * 2,
        ),
        ({"compression_config": EIGHT}, "compressed-tensors", "fp8", [1.0] * 2),
        (
            {"compression_config": MIXED},
            "compressed-tensors",
            "fp8",
            [(Q + PLAIN * (MATRICES["attention"] - Q) + (0.5 + 2.5 / 64) * MATRICES["mlp"]) / ALL]
            * 2,
        ),
        ({"quantization_config": ONE_OF_TWO_LAYERS}, "fp8", "fp8", [1.0, PLAIN]),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            "fp8",
            "fp8",
            [1 + 4 / 128**2] * 2,
        ),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "bitsandbytes",
            "int4",
            [0.5 + 4 / 64] * 2,
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "bitsandbytes",
                    "load_in_4bit": True,
                    "bnb_4bit_use_double_quant": True,
                }
            },
            "bitsandbytes",
            "int4",
            [0.5 + (1 + 4 / 256) / 64] * 2,
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
            [(PLAIN * DOWN + (1 + 2 / 64) * (ALL - DOWN)) / ALL] * 2,
        ),
    ],
)
def test_scales_and_modules_left_as_they_were_count_layer_by_layer(
    changes: dict[str, Any], method: str, dtype: str, each: list[float]
) -> None:
    facts = facts_from_config({**QWEN, **changes})
    assert (facts["quantization"], facts["weight_dtype"]) == (method, dtype)
    assert facts["weight_bytes"] == pytest.approx(each)


def test_bytes_of_uneven_layers(write_config: WriteConfig) -> None:
    folder_with(write_config().parent, quantization_config=ONE_OF_TWO_LAYERS)
    model = load_config(write_config(model='[model]\npath="weights"', estimator="")).model
    assert model.bytes_per_weight == pytest.approx(1.5)
    assert model.layer_bytes == pytest.approx(1.5 * model.layer_parameters)
    assert model.bytes_of_layers(range(1)) == pytest.approx(model.layer_parameters)
    assert model.bytes_of_layers(range(1, 2)) == pytest.approx(2 * model.layer_parameters)
    assert model.heaviest(first=True, last=False) == pytest.approx((0, 1, 3))
    assert model.heaviest(first=False, last=True) == pytest.approx((0, 2, 3))
    assert model.heaviest(first=False, last=False) == pytest.approx((0, 2, 3))
    plain = load_config(
        write_config(model='[model]\npath="weights"\nweight_dtype="float16"', estimator="")
    ).model
    assert plain.bytes_of_layers(range(2)) == 2 * plain.layer_bytes == 4 * plain.layer_parameters


def test_a_stage_of_unquantised_layers_has_less_room(write_config: WriteConfig) -> None:
    """Eight layers of fp8, of which the last four were left: a cut in the middle is uneven."""
    names = [f"model.layers.{layer}" for layer in range(4, 8)]
    left = {"quant_method": "fp8", "modules_to_not_convert": names}
    folder_with(write_config().parent, quantization_config=left, num_hidden_layers=8)
    model = load_config(write_config(model='[model]\npath="weights"', estimator="")).model
    memory = Memory(model, 1.0, Runtime(), 16, 1)
    first, last = (
        memory.weights(1, Position(first=first, last=not first), np.array([4])).item()
        for first in (True, False)
    )
    tables = model.vocab * model.hidden * 2
    assert last - tables == pytest.approx(2 * (first - tables), rel=1e-3)
    whole = memory.weights(1, Position(first=True, last=False), np.array([8])).item()
    assert first + last == pytest.approx(whole + tables, rel=1e-6)


def test_what_model_optimizer_writes_beside_the_config(write_config: WriteConfig) -> None:
    folder = folder_with(write_config().parent)
    (folder / "hf_quant_config.json").write_text(json.dumps(NVFP4))
    model = load_config(write_config(model='[model]\npath="weights"', estimator="")).model
    assert (model.quantization, model.weight_dtype) == ("modelopt", "int4")
    assert model.weight_bytes == pytest.approx((0.5 + 1 / 16,) * 2)
    (folder / "hf_quant_config.json").write_text(json.dumps(BY_LAYER))
    model = load_config(write_config(model='[model]\npath="weights"', estimator="")).model
    assert (model.quantization, model.weight_dtype) == ("modelopt", "fp8")
    assert model.weight_bytes == pytest.approx((PLAIN, (DOWN + PLAIN * (ALL - DOWN)) / ALL))


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


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"num_hidden_layers": "many"}, "layers = 2"),
        ({"hidden_size": None}, "hidden = 96"),
        ({"vocab_size": 1 << 40}, "vocab = 1000"),
        ({"num_key_value_heads": "two"}, "kv_heads = 2"),
        ({"head_dim": "wide"}, "head_dim = 32"),
        ({"max_position_embeddings": -1}, "max_positions = 8192"),
    ],
)
@pytest.mark.parametrize("by", ["path", "name"])
def test_the_remedy_for_an_odd_fact_works(
    by: str, changes: dict[str, Any], fact: str, write_config: WriteConfig
) -> None:
    folder_with(write_config().parent, **changes)
    text = f'[model]\n{by}="weights"\n'
    with pytest.raises(UserError, match=next(iter(changes))) as caught:
        load_config(write_config(model=text))
    assert "in [model]" in caught.value.remedy
    assert load_config(write_config(model=text + fact, estimator="")).model.head_dim == 32


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
