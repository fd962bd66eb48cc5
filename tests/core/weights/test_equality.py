"""Shards of real models, put together again by other means than those that cut them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shuntserve_core.weights import Manifest, ModelName, load_manifest
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.pushing import push_model
from shuntserve_core.weights.sources import open_source
from shuntserve_plugins.storage.directory import DirectoryStore
from tests.core.weights.models import traw

Tensors = dict[str, torch.Tensor]
DTYPE_NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}


def make_model(family: str, directory: Path, dtype: torch.dtype) -> Path:
    """A random model whose shapes divide by no more than they must, in many files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        sizes: dict[str, Any] = {
            "hidden_size": 40,
            "intermediate_size": 104,
            "num_hidden_layers": 3,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "vocab_size": 1001,
        }
        torch.manual_seed(0)
        if family == "llama":
            config = transformers.LlamaConfig(**sizes, attention_bias=True, mlp_bias=True)
        elif family == "qwen2":
            sizes |= {"hidden_size": 48, "tie_word_embeddings": True}
            config = transformers.Qwen2Config(**sizes)
        else:
            config = transformers.Qwen3Config(**sizes)
        model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        model.save_pretrained(directory, max_shard_size="100KB")
    return directory


def source_tensors(directory: Path) -> Tensors:
    tensors: Tensors = {}
    for path in directory.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def stored(store: DirectoryStore, name: ModelName, degree: int, tensor: str) -> list[torch.Tensor]:
    """Every rank's part, read with nothing of ours, and rewritten to compare the whole file."""
    parts = []
    for rank in range(degree):
        file = (store.root / name.prefix / f"TP{degree}/shard{rank}/{tensor}.bin").read_bytes()
        dimensions = int.from_bytes(file[8:12], "little")
        shape = [int.from_bytes(file[12 + 8 * n : 20 + 8 * n], "little") for n in range(dimensions)]
        code = int.from_bytes(file[12 + 8 * dimensions : 16 + 8 * dimensions], "little")
        dtype = {1: torch.float16, 2: torch.bfloat16, 3: torch.float32}[code]
        data = file[24 + 8 * dimensions :]
        assert traw(DTYPE_NAMES[dtype], tuple(shape), data) == file
        parts.append(torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape))
    return parts


def join(name: str, parts: list[torch.Tensor], whole: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """The tensor again; asserts that replicas are equal and that padding is zero."""
    kind = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
    if kind in ("embed_tokens", "lm_head"):
        table = torch.cat(parts)
        assert len(table) % 64 == 0
        assert not table[len(whole) :].any()
        return table[: len(whole)]
    if kind in ("q_proj", "gate_proj", "up_proj"):
        return torch.cat(parts)
    if kind in ("k_proj", "v_proj"):
        replicas = max(1, len(parts) // kv_heads)
        for rank, part in enumerate(parts):
            assert torch.equal(part, parts[rank // replicas * replicas])
        return torch.cat(parts[::replicas])
    if kind in ("o_proj", "down_proj") and name.endswith("weight"):
        return torch.cat(parts, dim=1)
    assert all(torch.equal(part, parts[0]) for part in parts)
    return parts[0]


def check(store: DirectoryStore, manifest: Manifest, source: Tensors) -> None:
    kv_heads = manifest.geometry.kv_heads
    if manifest.geometry.tied_embeddings:
        source.pop("lm_head.weight", None)
    for degree in manifest.degrees:
        shard = store.root / manifest.name.prefix / f"TP{degree}/shard0"
        assert {path.name.removesuffix(".bin") for path in shard.iterdir()} == source.keys()
        for name, whole in source.items():
            joined = join(name, stored(store, manifest.name, degree, name), whole, kv_heads)
            bits = torch.uint8
            assert joined.dtype == whole.dtype
            assert torch.equal(joined.contiguous().view(bits), whole.contiguous().view(bits)), name


def push(checkpoint: Path, store: DirectoryStore, degrees: list[int]) -> Manifest:
    source, name = open_source(str(checkpoint))
    push_model(store, source, plan_push(source, name, degrees))
    return load_manifest(store, name)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", torch.bfloat16), ("qwen2", torch.float32), ("qwen3", torch.float16)],
)
def test_random_models(
    family: str, dtype: torch.dtype, tmp_path: Path, store: DirectoryStore
) -> None:
    checkpoint = make_model(family, tmp_path / family, dtype)
    assert len(list(checkpoint.glob("*.safetensors"))) > 1
    manifest = push(checkpoint, store, [1, 2, 4, 8])
    assert manifest.geometry.family == family
    check(store, manifest, source_tensors(checkpoint))


@pytest.mark.timeout(300)
def test_smollm2(smollm2: Path, store: DirectoryStore) -> None:
    check(store, push(smollm2, store, [1, 3]), source_tensors(smollm2))


@pytest.fixture(scope="module")
def answer() -> Callable[[Path, str], str]:
    def generate(directory: Path, question: str) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import transformers

            tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32
            )
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
            output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
        text = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
        assert isinstance(text, str)
        return text

    return generate


@pytest.mark.timeout(300)
def test_smollm2_from_gguf_answers(smollm2: Path, answer: Callable[[Path, str], str]) -> None:
    """Rows of q and k in a wrong order, or a wrong tokenizer, would give gibberish."""
    text = answer(smollm2, "What is the capital of France?")
    assert text == "The capital of France is Paris.<|im_end|>"
