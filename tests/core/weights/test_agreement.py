"""Whether a model directory belongs to the weights in a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from shuntserve_core.config.model_facts import facts_from_directory
from shuntserve_core.errors import UserError
from shuntserve_core.registry import Registry
from shuntserve_core.types import ModelSpec
from shuntserve_core.weights import Manifest
from shuntserve_core.weights.agreement import (
    differences,
    refuse_other_facts,
    refuse_other_model,
)
from shuntserve_core.weights.manifest import encode_manifest
from shuntserve_plugins.storage.directory import DirectoryStore
from tests.core.weights.checkpoints import configure

OLD = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "rope_theta": 5e5}


@pytest.fixture
def directory(checkpoint: Path, tmp_path: Path) -> Path:
    """A model directory without weights, as nodes have it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    return folder


def compare(store: DirectoryStore, manifest: Manifest, directory: Path) -> None:
    refuse_other_model(store.url, str(manifest.name), directory, Registry())


@pytest.mark.parametrize(
    "changes", [{}, {"torch_dtype": "float16"}, {"_name_or_path": "x"}, {"use_cache": False}]
)
def test_the_same_model(
    changes: dict[str, Any], store: DirectoryStore, manifest: Manifest, directory: Path
) -> None:
    compare(store, manifest, configure(directory, **changes))
    assert (directory / "config.json").is_file()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_key_value_heads": 4}, "num_key_value_heads 4 instead of 2"),
        ({"head_dim": 8}, "head_dim 8 instead of 6"),
        ({"rms_norm_eps": 0.1}, "rms_norm_eps 0.1 instead of None"),
        ({"rope_theta": 7.0}, "rope_theta 7.0 instead of 10000.0"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope type linear"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope type yarn"),
        ({"vocab_size": 1001}, "vocab_size 1001 instead of 1000"),
        ({"num_hidden_layers": 2}, "num_hidden_layers 2 instead of 3"),
        ({"attention_multiplier": 0.5}, "attention_multiplier 0.5 instead of None"),
        ({"sliding_window": 64}, "sliding_window 64 instead of None"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"model_type": "qwen2"}, "model_type qwen2"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization fp8"),
    ],
)
def test_another_model_is_refused(
    changes: dict[str, Any],
    says: str,
    store: DirectoryStore,
    manifest: Manifest,
    directory: Path,
) -> None:
    with pytest.raises(UserError, match="another model") as caught:
        compare(store, manifest, configure(directory, **changes))
    assert says in caught.value.message
    assert "weights pull" in caught.value.remedy


def test_a_config_that_was_changed_in_the_store(
    store: DirectoryStore, manifest: Manifest, directory: Path, tmp_path: Path
) -> None:
    file = tmp_path / "store" / manifest.name.prefix / "config.json"
    file.write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="damaged"):
        compare(store, manifest, directory)


def test_a_store_that_cannot_be_served_from(
    store: DirectoryStore, manifest: Manifest, directory: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no complete model local/other") as caught:
        refuse_other_model(store.url, "local/other", directory, Registry())
    assert str(manifest.name) in caught.value.remedy
    with pytest.raises(UserError, match="cannot be compared") as caught:
        refuse_other_model(str(tmp_path / "nowhere"), "local/other", directory, Registry())
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "changes", "says"),
    [
        ("self_attn.q_proj.weight", {"shape": (96, 40)}, r"q_proj.*\[96, 40\].*implies \[48, 40\]"),
        ("mlp.down_proj.weight", {"dtype": "float8_e4m3fn"}, "float8_e4m3fn .*plain numbers"),
    ],
)
def test_shards_that_the_stored_config_does_not_imply(
    path: str,
    changes: dict[str, Any],
    says: str,
    store: DirectoryStore,
    manifest: Manifest,
    directory: Path,
) -> None:
    key = f"TP1/shard0/model.layers.1.{path}.bin"
    record = evolve(manifest.tensors[key], **changes)
    rewrite(store, evolve(manifest, tensors={**manifest.tensors, key: record}))
    with pytest.raises(UserError, match=says) as caught:
        compare(store, manifest, directory)
    assert "--replace" in caught.value.remedy


def test_stored_scales_that_nobody_would_apply(
    store: DirectoryStore, manifest: Manifest, directory: Path
) -> None:
    record = manifest.tensors["TP1/shard0/model.norm.weight.bin"]
    key = "TP1/shard0/model.layers.0.self_attn.q_proj.weight_scale.bin"
    rewrite(store, evolve(manifest, tensors={**manifest.tensors, key: record}))
    with pytest.raises(UserError, match=r"q_proj\.weight_scale.*does not imply") as caught:
        compare(store, manifest, directory)
    assert "--replace" in caught.value.remedy


def rewrite(store: DirectoryStore, manifest: Manifest) -> None:
    _, version = store.get(manifest.name.manifest_key)
    store.put_if(manifest.name.manifest_key, encode_manifest(manifest), version)


def test_another_dtype_is_refused_where_both_say_one() -> None:
    assert differences({**OLD, "torch_dtype": "float16"}, {**OLD, "dtype": "bfloat16"}) == [
        "dtype float16 instead of bfloat16"
    ]
    assert differences({**OLD, "torch_dtype": "float16"}, OLD) == []


def test_facts_of_another_model_than_the_directorys(directory: Path) -> None:
    facts = facts_from_directory(directory)
    refuse_other_facts(ModelSpec(name="m", **facts), directory, "here")
    other = ModelSpec(name="m", **{**facts, "layers": 4, "tied_embeddings": True})
    with pytest.raises(UserError, match="another model than m") as caught:
        refuse_other_facts(other, directory, "here")
    assert "layers 3 instead of 4, tied_embeddings False instead of True" in caught.value.message
    assert "path" in caught.value.remedy


def test_old_and_new_forms_of_the_same_are_the_same() -> None:
    new = {**OLD, "rope_theta": None, "head_dim": 16, "num_key_value_heads": 4}
    new |= {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "hidden_act": "silu"}
    assert differences(OLD, new) == []
    assert differences(OLD, {**new, "head_dim": 8}) == ["head_dim 16 instead of 8"]
