"""What is pushed is what its config says, or it is refused: nothing is served as garbage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shuntserve_core.errors import UserError
from shuntserve_core.weights import ModelName
from shuntserve_core.weights.planning import PushPlan, plan_push
from shuntserve_core.weights.sources.safetensors import SafetensorsDirectory
from tests.core.weights.checkpoints import FP8, configure, make, save, tensors_of, to_fp8

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("sound") / "m")


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "m"))


def plan(directory: Path) -> PushPlan:
    return plan_push(SafetensorsDirectory(directory), ModelName("local", "m"), [1, 2])


def with_tensor(name: str, tensor: torch.Tensor) -> Change:
    return lambda directory: save(directory, {**tensors_of(directory), name: tensor})


def without(*names: str) -> Change:
    def change(directory: Path) -> None:
        kept = {n: t for n, t in tensors_of(directory).items() if not n.endswith(names)}
        save(directory, kept)

    return change


def configured(**changes: Any) -> Change:
    return lambda directory: configure(directory, **changes)


def fp8(**changes: Any) -> Change:
    return lambda directory: configure(to_fp8(directory), **changes)


def fp8_by_model_optimizer(directory: Path) -> None:
    to_fp8(directory, "weight_scale")
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (directory / "hf_quant_config.json").write_text(json.dumps(said))


def renamed(old: str, new: str) -> Change:
    def change(directory: Path) -> None:
        save(directory, {n.replace(old, new): t for n, t in tensors_of(directory).items()})

    return change


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_what_transformers_saves_is_taken(family: str, tied: bool, tmp_path: Path) -> None:
    directory = make(tmp_path / "m", family, tie_word_embeddings=tied, sliding_window=None)
    names = {shard.tensor.name for shard in plan(directory).shards}
    assert names == set(tensors_of(directory)) - ({"lm_head.weight"} if tied else set())


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"mlp_bias": True}, {"head_dim": 8}])
def test_biases_and_widths_that_the_config_names_are_taken(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    directory = make(tmp_path / "m", **changes)
    assert {shard.tensor.name for shard in plan(directory).shards} == set(tensors_of(directory))


Q = "model.layers.1.self_attn.q_proj"
NUMBERS = torch.ones(64, 64, dtype=torch.float16)
REFUSED: dict[str, tuple[Change, str, str]] = {
    "fp8": (fp8(quantization_config=FP8), r"quantised \(fp8\)", "plain float16"),
    "fp8 without a word": (fp8(), "quantised weights", "plain float16"),
    "fp8 in compression_config": (
        fp8(compression_config={"config_groups": {}}),
        r"quantised \(compressed-tensors\)",
        "plain float16",
    ),
    "fp8 by Model Optimizer": (fp8_by_model_optimizer, r"quantised \(modelopt\)", "plain float16"),
    "a scale": (with_tensor(f"{Q}.weight_scale", NUMBERS[0]), "scale of quantised", "plain"),
    "packed": (renamed("q_proj.weight", "q_proj.qweight"), "packed quantisation", "plain"),
    "an adapter": (
        with_tensor(f"base_model.model.{Q}.lora_A.weight", NUMBERS),
        "LoRA adapter",
        "merge_and_unload",
    ),
    "other kv heads": (
        configured(num_key_value_heads=1),
        r"k_proj.*\[32, 64\].*\[16, 64\]",
        "config",
    ),
    "other head_dim": (configured(head_dim=8), r"implies \[16, 64\]", "config.json that belongs"),
    "other width": (configured(intermediate_size=64), r"\[64, 96\].*\[64, 64\]", "config.json"),
    "one tensor twice as tall": (
        with_tensor(f"{Q}.weight", torch.cat([NUMBERS, NUMBERS])),
        rf"{Q}.weight is \[128, 64\]",
        "config.json",
    ),
    "a norm of one number": (
        with_tensor("model.norm.weight", NUMBERS[0, :1]),
        r"model.norm.weight is \[1\], .* \[64\]",
        "config.json",
    ),
    "more layers than the config": (configured(num_hidden_layers=1), "no such tensor", "config"),
    "fewer": (configured(num_hidden_layers=3), "lacks model.layers.2.*and 8 more", "download"),
    "a bias that is not named": (with_tensor(f"{Q}.bias", NUMBERS[0]), "no such tensor", "config"),
    "a bias that is not there": (configured(attention_bias=True), "lacks .*bias", "download"),
    "a norm that is not named": (
        with_tensor("model.layers.0.self_attn.q_norm.weight", NUMBERS[0, :16]),
        "no such tensor",
        "config.json",
    ),
    "no output projection": (
        without("lm_head.weight"),
        "lacks lm_head",
        '"tie_word_embeddings": true',
    ),
    "tied, with another output projection": (
        configured(tie_word_embeddings=True),
        "different in 128 of 128 rows",
        '"tie_word_embeddings": false',
    ),
    "numbers that are whole": (
        with_tensor(f"{Q}.weight", NUMBERS.to(torch.int64)),
        "is of type I64",
        "plain",
    ),
    "experts": (configured(num_local_experts=8), "mixture of experts", "weights.md"),
    "a scale of logits": (configured(logits_scaling=8.0), "logits_scaling is 8.0", "weights.md"),
    "soft caps": (configured(final_logit_softcapping=30.0), "softcapping is 30.0", "weights.md"),
    "another activation": (configured(hidden_act="gelu"), "activation 'gelu'", "weights.md"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_served_wrongly_is_refused(name: str, copy: Path) -> None:
    change, says, remedy = REFUSED[name]
    change(copy)
    with pytest.raises(UserError, match=says) as caught:
        plan(copy)
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_a_tied_projection_that_is_the_table_is_left_out(copy: Path) -> None:
    configure(copy, tie_word_embeddings=True)
    tensors = tensors_of(copy)
    save(copy, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
    assert "lm_head.weight" not in {shard.tensor.name for shard in plan(copy).shards}


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.int16])
@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "score.weight", "visual.ids"]
)
def test_what_nobody_needs_is_skipped_whatever_its_type(
    name: str, dtype: torch.dtype, copy: Path
) -> None:
    whole = plan(copy).shards
    with_tensor(name, torch.ones(8).to(dtype))(copy)
    assert [shard.path for shard in plan(copy).shards] == [shard.path for shard in whole]


def test_the_remedies_for_tied_tables_work(copy: Path) -> None:
    tensors = tensors_of(copy)
    del tensors["lm_head.weight"]
    save(copy, tensors)
    with pytest.raises(UserError, match=r"lacks lm_head\.weight") as caught:
        plan(copy)
    assert '"tie_word_embeddings": true' in caught.value.remedy
    configure(copy, tie_word_embeddings=True)
    assert plan(copy).shards
    with_tensor("lm_head.weight", tensors["model.embed_tokens.weight"] * 2)(copy)
    with pytest.raises(UserError, match="different in 128 of 128 rows") as caught:
        plan(copy)
    assert '"tie_word_embeddings": false' in caught.value.remedy
    configure(copy, tie_word_embeddings=False)
    assert plan(copy).shards


def test_a_tensor_twice(copy: Path) -> None:
    shutil.copy(copy / "model.safetensors", copy / "model-copy.safetensors")
    with pytest.raises(UserError, match=r"is in model-copy\.safetensors already") as caught:
        plan(copy)
    assert "one checkpoint only" in caught.value.remedy


def test_a_tensor_twice_in_one_file(copy: Path) -> None:
    file = copy / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    first = next(iter(set(json.loads(header)) - {"__metadata__"}))
    entry = json.dumps({first: json.loads(header)[first]}).encode()[1:]
    twice = header[:-1] + b"," + entry
    file.write_bytes(len(twice).to_bytes(8, "little") + twice + data[8 + length :])
    with pytest.raises(UserError, match="is there twice"):
        plan(copy)
