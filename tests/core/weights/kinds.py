"""Families and forms of checkpoints, each as a small random model that transformers saves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from attrs import frozen

from tests.core.weights.checkpoints import (
    FP8,
    PROJECTIONS,
    configure,
    save,
    tensors_of,
    to_fp8,
)
from tests.core.weights.ggufs import write_gguf_of

Make = Callable[[Path], Path]
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 192,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
"""Heads of 32 elements are the least that vLLM computes on a CPU."""
SERVED = ("llama", "mistral", "qwen2", "qwen3")
_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
}
_GPT2 = {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 512}
_OTHERS = (
    *("ministral", "phi", "phi3", "gemma", "gemma2", "granite", "smollm3", "olmo", "olmo2"),
    *("seed_oss", "glm", "glm4", "exaone4", "apertus", "helium", "arcee", "starcoder2"),
    *("stablelm", "nemotron", "cohere", "opt", "gpt_neox"),
)
_WITH_EXPERTS = (
    *("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "granitemoe", "olmoe", "phimoe"),
    *("deepseek_v2", "deepseek_v3"),
)
FAMILIES: dict[str, dict[str, Any]] = {
    **{family: {} for family in (*SERVED, *_OTHERS)},
    "gemma3_text": {"query_pre_attn_scalar": 32},
    "gpt2": _GPT2,
    "falcon": {"head_dim": None},
    **dict.fromkeys(_WITH_EXPERTS, _EXPERTS),
}
"""Of each `model_type`, what it needs besides `SIZES` to be small."""


@frozen
class Kind:
    """One line of the table."""

    family: str
    form: str
    make: Make
    """Writes it into a folder that is not there yet; returns what is pushed."""

    @property
    def name(self) -> str:
        """Of both."""
        return f"{self.family}, {self.form}"


def made(directory: Path, family: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    """A random model as transformers saves it; None takes a size out."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {**SIZES, **FAMILIES.get(family, {}), **changes}
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, **{k: v for k, v in values.items() if v is not None})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
            elif name.endswith("norm.weight"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.to(dtype).save_pretrained(directory)
    return directory


def _plain(family: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Make:
    return lambda directory: made(directory, family, dtype, **changes)


def _then(*steps: Callable[[Path], object], family: str = "llama", **changes: Any) -> Any:
    def make(directory: Path) -> Path:
        made(directory, family, **changes)
        for step in steps:
            step(directory)
        return directory

    return make


def _config(**changes: Any) -> Make:
    return lambda directory: configure(directory, **changes)


def _tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Make:
    def step(directory: Path) -> Path:
        tensors = tensors_of(directory)
        change(tensors)
        return save(directory, tensors)

    return step


def _sharded(directory: Path) -> None:
    """The same again, in several files with an index."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="100KB")


def _pickled(directory: Path) -> None:
    torch.save(tensors_of(directory), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def _packed(method: str, suffix: str, **said: Any) -> Make:
    """Projections replaced by what a packing method stores; not that anybody could unpack it."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if any(f"{p}.weight" in n for p in PROJECTIONS)]:
            rows, columns = tensors.pop(name).shape
            stem = name.removesuffix("weight")
            tensors[f"{stem}{suffix}"] = torch.ones(columns // 8, rows, dtype=torch.int32)
            if suffix == "qweight":
                tensors[f"{stem}qzeros"] = torch.ones(1, rows // 8, dtype=torch.int32)
            tensors[f"{stem}scales"] = torch.ones(1, rows, dtype=torch.float16)

    def step(directory: Path) -> Path:
        _tensors(change)(directory)
        return configure(directory, quantization_config={"quant_method": method, **said})

    return step


def _adapter(directory: Path) -> None:
    tensors = tensors_of(directory)
    q = "model.layers.0.self_attn.q_proj"
    adapter = {
        f"base_model.model.{q}.lora_A.weight": tensors[f"{q}.weight"][:4],
        f"base_model.model.{q}.lora_B.weight": tensors[f"{q}.weight"][:, :4],
    }
    shutil.rmtree(directory)
    directory.mkdir()
    save(directory, adapter)
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))


def _own_head(factor: float) -> Make:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * factor

    return _tensors(change)


def _extras(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    tensors["model.embed_tokens.position_ids"] = torch.arange(8)[None]
    tensors["score.weight"] = torch.ones(2, 128).to(torch.float8_e4m3fn)
    tensors["causal_mask"] = torch.ones(4, 4, dtype=torch.bool)


def _twice(directory: Path) -> None:
    shutil.copy(directory / "model.safetensors", directory / "other.safetensors")


def _gguf(
    kind: str,
    family: str = "llama",
    metadata: Mapping[str, Any] = MappingProxyType({}),
    **changes: Any,
) -> Make:
    def make(directory: Path) -> Path:
        made(directory, family, torch.float16, **changes)
        return write_gguf_of(directory, kind, metadata)

    return make


def _rope(kind: str, **numbers: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **numbers}}


LLAMA3 = {
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"factor": 16.0, "original_max_position_embeddings": 32}
_INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
_GROUP = {"targets": ["Linear"], "weights": _INT4}


GGUF_KEYS: dict[str, Any] = {
    "rope.scaling.type": "yarn",
    "rope.dimension_count": 16,
    "attention.value_length": 16,
    "attention.sliding_window": 16,
    "attention.scale": 0.5,
    "attention.clamp_kqv": 8.0,
    "logit_scale": 0.5,
    "embedding_scale": 12.0,
    "residual_scale": 0.2,
    "final_logit_softcapping": 30.0,
    "expert_count": 4,
    "attention.novelty": 3,
}
"""Metadata that changes the arithmetic, or may."""


def _forms() -> dict[str, dict[str, Make]]:
    """What is tried of the families that are served, by family and form."""
    everywhere: dict[str, dict[str, Any]] = {
        "float32": {"dtype": torch.float32},
        "float16": {"dtype": torch.float16},
        "tied embeddings": {"tie_word_embeddings": True},
    }
    forms: dict[str, dict[str, Make]] = {
        family: {form: _plain(family, **changes) for form, changes in everywhere.items()}
        for family in SERVED
    }
    forms["mistral"] |= {
        "no window": _plain("mistral", sliding_window=None),
        "sliding window of 16": _plain("mistral", sliding_window=16),
        "attention_bias": _then(_config(attention_bias=True), family="mistral"),
    }
    forms["qwen2"] |= {
        "head_dim of 64": _plain("qwen2", head_dim=64),
        "windows in the upper layer": _plain(
            "qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=1
        ),
        "windows that no layer has": _plain(
            "qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=2
        ),
        "yarn": _plain("qwen2", **_rope("yarn", **YARN)),
        "no rope_theta": _then(_config(rope_parameters=None, rope_theta=None), family="qwen2"),
    }
    forms["qwen3"] |= {
        "attention_bias": _plain("qwen3", attention_bias=True),
        "windows in the upper layer": _plain(
            "qwen3", use_sliding_window=True, sliding_window=16, max_window_layers=1
        ),
        "no head_dim, and heads of 128": _then(
            _config(head_dim=None), family="qwen3", head_dim=128
        ),
        "yarn": _plain("qwen3", **_rope("yarn", **YARN)),
    }
    forms["llama"] |= {
        "attention_bias": _plain("llama", attention_bias=True),
        "mlp_bias": _plain("llama", mlp_bias=True),
        "one KV head": _plain("llama", num_key_value_heads=1),
        "heads of 64, hidden 128": _plain("llama", head_dim=64),
        "heads of 16": _plain("llama", head_dim=16),
        "rope linear": _plain("llama", **_rope("linear", factor=4.0)),
        "rope linear, as version 4 wrote it": _then(
            _config(
                rope_parameters=None,
                rope_theta=10000.0,
                rope_scaling={"type": "linear", "factor": 4.0},
            )
        ),
        "rope llama3": _plain("llama", **_rope("llama3", **LLAMA3)),
        "rope llama3 without its numbers": _then(
            _config(rope_parameters=None, rope_scaling={"rope_type": "llama3", "factor": 4.0})
        ),
        "rope yarn": _plain("llama", **_rope("yarn", **YARN)),
        "rope yarn, attention_factor": _plain(
            "llama", **_rope("yarn", **YARN, attention_factor=1.2, beta_fast=16.0)
        ),
        "rope yarn, mscale": _plain(
            "llama", **_rope("yarn", **YARN, mscale=1.0, mscale_all_dim=0.7)
        ),
        "rope yarn, contexts too long": _plain(
            "llama", **_rope("yarn", factor=2.0, original_max_position_embeddings=32)
        ),
        "rope dynamic": _plain("llama", **_rope("dynamic", factor=4.0)),
        "rope longrope": _plain(
            "llama",
            **_rope(
                "longrope",
                factor=4.0,
                original_max_position_embeddings=32,
                short_factor=[1.0] * 16,
                long_factor=[2.0] * 16,
            ),
        ),
        "rope_scaling against rope_parameters": _then(
            _config(rope_scaling={"rope_type": "linear", "factor": 4.0})
        ),
        "partial rotary": _then(_config(partial_rotary_factor=0.5)),
        "a window in its config": _then(_config(sliding_window=16)),
        "layer_types with windows": _then(
            _config(layer_types=["full_attention", "sliding_attention"], sliding_window=16)
        ),
        "an attention multiplier": _then(_config(attention_multiplier=0.5)),
        "a logit scale": _then(_config(logit_scale=0.25)),
        "a soft cap": _then(_config(final_logit_softcapping=30.0)),
        "qk_norm in its config": _then(_config(use_qk_norm=True)),
        "not causal": _then(_config(is_causal=False)),
        "GELU": _plain("llama", hidden_act="gelu"),
        "a classifier": _then(_config(architectures=["LlamaForSequenceClassification"])),
        "no architectures": _then(_config(architectures=None)),
        "in several files": _then(_sharded),
        "tied, with the table as projection": _then(_own_head(1), tie_word_embeddings=True),
        "tied, with another projection": _then(_own_head(2), tie_word_embeddings=True),
        "tensors that nobody needs": _then(_tensors(_extras)),
        "everything in two files": _then(_twice),
        "biases that config.json lacks": _then(
            _tensors(lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(128)}))
        ),
        "query norms that config.json lacks": _then(
            _tensors(lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(32)}))
        ),
        "one KV head too few in config.json": _then(_config(num_key_value_heads=1)),
        "FP8 (blocks)": _then(to_fp8, _config(quantization_config=FP8)),
        "FP8, not a word in config.json": _then(to_fp8),
        "FP8 by Model Optimizer": _then(to_fp8, _beside("FP8")),
        "NVFP4 by Model Optimizer": _then(_beside("NVFP4")),
        "AWQ": _then(_packed("awq", "qweight", bits=4, group_size=128, zero_point=True)),
        "GPTQ": _then(_packed("gptq", "qweight", bits=4, group_size=128, sym=True)),
        "AWQ, not a word in config.json": _then(
            _packed("awq", "qweight"), _config(quantization_config=None)
        ),
        "compressed-tensors, int4": _then(
            _packed("compressed-tensors", "weight_packed", config_groups={"group_0": _GROUP})
        ),
        "compression_config": _then(
            to_fp8, _config(compression_config={"config_groups": {"group_0": _GROUP}})
        ),
        "bitsandbytes, 8 bits": _then(
            _config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
        ),
        "bitsandbytes, 4 bits": _then(
            _config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
        ),
        "pickled (.bin)": _then(_pickled),
        "a LoRA adapter": _then(_adapter),
    }
    ggufs: Mapping[str, Make] = {
        **{f"GGUF {kind}": _gguf(kind) for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")},
        **{f"GGUF {kind}": _gguf(kind) for kind in ("Q5_0", "Q5_1")},
        "GGUF F16, tied": _gguf("F16", tie_word_embeddings=True),
        "GGUF F16, linear rope": _gguf(
            "F16",
            metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            **_rope("linear", factor=4.0),
        ),
        **{
            f"GGUF F16, {key} {value}": _gguf("F16", metadata={key: value})
            for key, value in GGUF_KEYS.items()
        },
    }
    forms["llama"] |= ggufs
    for family in ("qwen2", "qwen3"):
        forms[family]["GGUF F16"] = _gguf("F16", family)
        forms[family]["GGUF Q8_0"] = _gguf("Q8_0", family)
    return forms


def _beside(algorithm: str) -> Callable[[Path], object]:
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}}
    return lambda directory: (directory / "hf_quant_config.json").write_text(json.dumps(said))


def kinds() -> list[Kind]:
    """Every line, in the order of the table."""
    forms = _forms()
    lines = []
    for family in FAMILIES:
        lines.append(Kind(family, "bfloat16", _plain(family)))
        lines += [Kind(family, form, make) for form, make in forms.get(family, {}).items()]
    return lines
