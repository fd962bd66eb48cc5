"""What a config says of the arithmetic: known, without effect, or refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from shuntserve_core.config.model_facts import bundled_models
from shuntserve_core.peculiar import unknown_to_all
from shuntserve_core.positions import KINDS, odd_rotary

LLAMA: dict[str, Any] = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_what_transformers_writes_by_default_is_taken(family: str) -> None:
    from transformers import AutoConfig

    assert unknown_to_all(AutoConfig.for_model(family).to_dict()) is None


def test_models_that_come_along_are_taken() -> None:
    assert [name for name, config in bundled_models().items() if unknown_to_all(config)] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"pretraining_tp": 2, "use_cache": True, "_name_or_path": "x", "transformers_version": "4"},
        {"unsloth_version": "2024.9", "auto_map": {"AutoConfig": "a.B"}, "vocab_size": 9},
        {"rope_interleaved": False, "is_llama_config": True, "use_mrope": False},
        {"attention_dropout": 0.1, "initializer_range": 0.02, "chunk_size_feed_forward": 0},
        {"logit_scale": 1.0, "num_experts": 0, "use_parallel_residual": False, "is_causal": True},
        {"rope_scaling": None, "rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": LLAMA3, "hidden_act": "silu", "norm_type": "rmsnorm"},
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ["LLaMAForCausalLM"]},
        {"router_aux_loss_coef": 0.001, "layer_norm_eps": 1e-5},
    ],
    ids=str,
)
def test_what_changes_nothing_is_taken(changes: dict[str, Any]) -> None:
    assert unknown_to_all({**LLAMA, **changes}) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_multiplier", 0.5),
        ("softmax_scale", 0.1),
        ("mup_base_width", 256),
        ("embedding_multiplier", 12.0),
        ("residual_multiplier", 0.2),
        ("logits_scaling", 8.0),
        ("logit_cap", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("clip_qkv", 8.0),
        ("query_pre_attn_scalar", 256),
        ("use_qk_norm", True),
        ("qk_layernorm", True),
        ("qkv_bias", True),
        ("bias", True),
        ("use_bias", True),
        ("alibi", True),
        ("nope_layers", [0, 1]),
        ("no_rope_layer_interval", 4),
        ("rotary_pct", 0.25),
        ("rotary_dim", 32),
        ("rope_ratio", 2),
        ("attention_chunk_size", 8192),
        ("sliding_window_pattern", 6),
        ("dual_chunk_attention_config", {"chunk_size": 8192}),
        ("parallel_attn", True),
        ("use_parallel_residual", True),
        ("norm_type", "layernorm"),
        ("attn_temperature_tuning", True),
        ("llama_4_scaling", {"beta": 0.1}),
        ("num_kv_shared_layers", 2),
        ("per_layer_config", {"0": {}}),
        ("ada_rms_norm_t_cond", True),
        ("is_causal", False),
        ("n_routed_experts", 8),
        ("hidden_act", "gelu"),
        ("mlp_gated", "no"),
        ("architectures", ["LlamaForSequenceClassification"]),
        ("architectures", ["LlamaForCausalLMEagle"]),
        ("rotary_emb_base", 5e5),
    ],
)
def test_what_may_change_the_arithmetic_is_refused_by_name(key: str, value: Any) -> None:
    reason = unknown_to_all({**LLAMA, key: value})
    assert reason
    named = {"hidden_act": "activation", "architectures": "architecture"}
    assert named.get(key, key) in reason


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "without a number for factor"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "without a number for factor"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "number for low_freq_factor"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [1, 2]}}, "'mrope_section'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "'full_attention'"),
        ({"rope_parameters": {"rope_type": "default", "use_fope": True}}, "'use_fope'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_theta": "large"}, "rope_theta is 'large'"),
        ({"rope_theta": -1.0}, "rope_theta is '-1.0'"),
        ({"rope_scaling": LLAMA3, "original_max_position_embeddings": 4096}, "4096"),
        (
            {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}},
            "say different things",
        ),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32,
                    "beta_fast": None,
                }
            },
            "beta_fast",
        ),
    ],
)
def test_odd_rotary_positions(changes: dict[str, Any], says: str) -> None:
    reason = odd_rotary({**LLAMA, **changes}, KINDS)
    assert reason
    assert says in reason


def test_the_same_positions_said_twice_are_taken() -> None:
    twice = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5}
    twice["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    assert odd_rotary({**LLAMA, **twice}, KINDS) is None
