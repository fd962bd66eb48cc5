"""vLLM makes one buffer for keys and values; it is ours, and so is the address of every layer."""

from __future__ import annotations

import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what importing vLLM warns of is not ours
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
        KVCacheTensor,
    )
    from vllm.v1.kv_cache_layout import KVCacheLayout
    from vllm.v1.worker.utils import allocate_kv_cache

    from shuntserve_plugins.engines.vllm.lending import LentMemory

BLOCKS = 5
SPEC = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=32, dtype=torch.float32)
PAGE = SPEC.page_size_bytes
LAYERS = ["one", "two"]
CONFIG = KVCacheConfig(
    num_blocks=BLOCKS,
    kv_cache_tensors=[
        KVCacheTensor(
            size=2 * PAGE * BLOCKS, layers=LAYERS, layer_stride=PAGE * BLOCKS, block_stride=PAGE
        )
    ],
    kv_cache_groups=[KVCacheGroupSpec(LAYERS, SPEC)],
)


def allocate() -> dict[str, torch.Tensor]:
    return allocate_kv_cache(CONFIG, torch.device("cpu"), KVCacheLayout.LBHNC)


def twice() -> None:
    allocate()
    allocate()


def test_every_layer_lies_in_the_lent_memory() -> None:
    memory = torch.zeros(2 * PAGE * BLOCKS + 100, dtype=torch.int8)
    with LentMemory(memory):
        caches = allocate()
    starts = [caches[layer].untyped_storage().data_ptr() for layer in LAYERS]
    assert starts == [memory.data_ptr()] * 2
    caches["two"][BLOCKS - 1].fill_(1)
    assert memory[-100:].count_nonzero() == 0
    assert memory[PAGE * (2 * BLOCKS - 1) : 2 * PAGE * BLOCKS].count_nonzero() > 0
    assert memory[: PAGE * BLOCKS].count_nonzero() == 0


def test_memory_that_is_too_small_or_not_asked_for_once_is_an_error() -> None:
    small = torch.zeros(PAGE, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="bytes of KV memory wanted"), LentMemory(small):
        allocate()
    with pytest.raises(RuntimeError, match="0 times, not once"), LentMemory(small):
        torch.zeros(3)
    large = torch.zeros(2 * PAGE * BLOCKS, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="2 times, not once"), LentMemory(large):
        twice()
