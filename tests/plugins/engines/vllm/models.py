"""Small random models with a tokenizer, cut and stored; their safetensors are then moved away."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from shuntserve_core.config.model_facts import facts_from_directory
from shuntserve_core.interfaces.engine import EngineLaunch, RankLaunch
from shuntserve_core.types import ModelSpec
from tests.core.tensorstore.processes import push
from tests.plugins.engines.embedded.processes import HOST, TOKEN, Stores, free_port

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 192,
    "vocab_size": 500,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
"""500 tokens are padded to 512: the last ranks' rows are in part nobody's."""


@frozen
class StoredModel:
    """What an engine is given, and what it must not need."""

    spec: ModelSpec
    directory: Path
    """`config.json` and the tokenizer, and no weights."""
    weights: Path
    """The weight store."""
    checkpoint: Path
    """The safetensors, out of any engine's sight."""


def build(family: str, directory: Path, degrees: list[int]) -> StoredModel:
    """Make a random model of the family, and cut it for these degrees."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    made = directory / family
    model.to(torch.float32).save_pretrained(made)
    _tokenizer().save_pretrained(made)
    return stored(made, directory, family, degrees)


def stored(made: Path, directory: Path, family: str, degrees: list[int]) -> StoredModel:
    """Cut a checkpoint into a store, and take its weights away."""
    name = push(made, directory / "store", degrees)
    checkpoint = directory / f"{family}-checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_bytes((made / "config.json").read_bytes())
    for file in made.glob("*.safetensors"):
        file.rename(checkpoint / file.name)
    facts = {**facts_from_directory(made), "dtype": "float32", "kv_dtype": "float32"}
    spec = ModelSpec(name=name, **facts)
    return StoredModel(spec, made, directory / "store", checkpoint)


def _tokenizer() -> Any:
    """Bytes, and a few hundred merges of them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(argparse.__file__).read_text()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def launch_of(
    model: StoredModel,
    layers: Sequence[tuple[int, int]],
    degrees: Sequence[int],
    stores: Stores,
    *,
    engine_id: str = "engine",
    kv_bytes: int = 32 << 20,
) -> EngineLaunch:
    """A launch on one host; every rank has a store."""
    places = [(stage, rank) for stage, tp in enumerate(degrees) for rank in range(tp)]
    ranks = [
        RankLaunch(f"node-{stage}", HOST, rank, stage, rank, str(stores.sockets[index]))
        for index, (stage, rank) in enumerate(places)
    ]
    return EngineLaunch(
        engine_id=engine_id,
        model=model.spec,
        model_dir=str(model.directory),
        weights=str(model.weights),
        weights_model=model.spec.name,
        layers=tuple(layers),
        tensor_parallel=tuple(degrees),
        ranks=tuple(ranks),
        rendezvous=f"{HOST}:{free_port()}",
        link_token=TOKEN,
        max_batch=8,
        max_length=512,
        kv_bytes=kv_bytes,
    )
