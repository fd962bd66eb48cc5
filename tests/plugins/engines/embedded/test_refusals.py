"""Models that this engine would answer nonsense with are refused, with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve

from shuntserve_core.errors import UserError
from shuntserve_plugins.engines.embedded.engine import Embedded
from shuntserve_plugins.engines.embedded.geometry import read_geometry
from shuntserve_plugins.engines.embedded.weights import check_tensors
from tests.core.weights.checkpoints import FP8, configure, make, tensors_of, to_fp8
from tests.plugins.engines.embedded.processes import Model, Stores, launch_of


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("sound") / "m")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"quantization_config": FP8}, r"quantised \(fp8\)"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"quantised \(awq\)"),
        ({"quantization_config": {"bits": 4, "checkpoint_format": "x"}}, "without a name"),
        ({"compression_config": {"config_groups": {"g": {}}}}, "compressed-tensors"),
        ({"sliding_window": 64}, "sliding_window is 64"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "'sliding_attention'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "0.25"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "'full_attention'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"attention_bias": True}, "biases"),
        ({"mlp_bias": True}, "biases"),
        ({"num_experts": 8}, "mixture of experts"),
        ({"qk_norm": True}, "qk_norm"),
        ({"attention_multiplier": 0.5}, "attention_multiplier is 0.5"),
        ({"hidden_act": "gelu"}, "'gelu'"),
    ],
)
def test_what_the_config_names_and_nobody_computes(
    changes: dict[str, Any], says: str, sound: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((sound / "config.json").read_bytes())
    configure(tmp_path, **changes)
    with pytest.raises(UserError, match=says) as caught:
        read_geometry(tmp_path)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "changes",
    [{}, {"layer_types": ["full_attention"] * 2}, {"sliding_window": None}, {"num_experts": 1}],
)
def test_what_changes_nothing_is_taken(
    changes: dict[str, Any], sound: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((sound / "config.json").read_bytes())
    assert read_geometry(configure(tmp_path, **changes)).hidden == 64


def test_a_file_of_model_optimizer_beside_the_config(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((sound / "config.json").read_bytes())
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"quantised \(modelopt\)"):
        read_geometry(tmp_path)


def test_a_quantised_model_gets_no_processes(llama: Model, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((llama.directory / "config.json").read_bytes())
    configure(tmp_path, quantization_config=FP8)
    stores_dir = tmp_path / "stores"
    stores_dir.mkdir()
    with Stores(stores_dir, 1) as stores:
        launch = launch_of(llama, [(0, 4)], [1], stores)
    with pytest.raises(UserError, match="quantised") as caught:
        Embedded().workers(evolve(launch, model_dir=str(tmp_path)))
    assert "plain float16" in caught.value.remedy


def test_an_fp8_model_that_is_in_a_store_already(sound: Path, tmp_path: Path) -> None:
    """As versions before stored it: the config in the model directory need not say a word."""
    geometry = read_geometry(sound)
    check_tensors(tensors_of(sound), geometry, "store")
    (tmp_path / "model.safetensors").write_bytes((sound / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"float8_e4m3fn|weight_scale_inv") as caught:
        check_tensors(tensors_of(to_fp8(tmp_path)), geometry, "store")
    assert "--replace" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.layers.1.self_attn.q_proj.bias", "is in the store"),
        ("model.layers.0.self_attn.k_norm.weight", "is in the store"),
        ("model.scale", "nothing that it computes with"),
    ],
)
def test_stored_tensors_that_would_be_ignored(name: str, says: str, sound: Path) -> None:
    geometry = read_geometry(sound)
    tensors = {**tensors_of(sound), name: torch.ones(64, dtype=torch.float16)}
    with pytest.raises(UserError, match=says):
        check_tensors(tensors, geometry, "store")
    lacking = tensors_of(sound)
    del lacking["model.layers.1.input_layernorm.weight"]
    with pytest.raises(UserError, match="is not in the store"):
        check_tensors(lacking, geometry, "store")
