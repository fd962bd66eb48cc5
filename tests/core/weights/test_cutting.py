from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.errors import UserError
from shuntserve_core.weights.cutting import (
    cut_of,
    join_shards,
    padded_vocab,
    shard_pieces,
    shard_shape,
)
from shuntserve_core.weights.geometry import Geometry


def geometry(heads: int = 8, kv_heads: int = 2, vocab: int = 100) -> Geometry:
    return Geometry("llama", 1, heads, kv_heads, vocab, tied_embeddings=False)


@pytest.mark.parametrize(
    ("vocab", "degree", "rows"),
    [
        (49152, 1, 49152),
        (49152, 3, 49152),
        (32000, 8, 32000),
        (32001, 1, 32064),
        (151936, 4, 151936),
        (1000, 8, 1024),
        (32000, 3, 32064),
        (64, 128, 128),
    ],
)
def test_vocabulary_is_padded_to_64_and_to_the_degree(vocab: int, degree: int, rows: int) -> None:
    assert padded_vocab(vocab, degree) == rows


@given(
    head_dim=st.integers(1, 5),
    hidden=st.integers(1, 7),
    kv_heads=st.sampled_from([1, 2, 4]),
    degree=st.sampled_from([1, 2, 4, 8]),
    vocab=st.integers(1, 300),
    itemsize=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=40, deadline=None)
def test_shards_put_together_are_the_tensor(
    head_dim: int, hidden: int, kv_heads: int, degree: int, vocab: int, itemsize: int
) -> None:
    sizes = geometry(heads=8, kv_heads=kv_heads, vocab=vocab)
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.layers.0.self_attn.q_proj.weight": (8 * head_dim, hidden),
        "model.layers.0.self_attn.q_proj.bias": (8 * head_dim,),
        "model.layers.0.self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
        "model.layers.0.self_attn.v_proj.bias": (kv_heads * head_dim,),
        "model.layers.0.self_attn.o_proj.weight": (hidden, 8 * head_dim),
        "model.layers.0.self_attn.q_norm.weight": (head_dim,),
        "model.layers.0.mlp.gate_proj.weight": (8 * hidden, hidden),
        "model.layers.0.mlp.down_proj.weight": (hidden, 8 * hidden),
        "model.norm.weight": (hidden,),
    }
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        whole = random.integers(0, 256, (*shape, itemsize), dtype=np.uint8)
        rows = whole.reshape(shape[0], -1)
        shards = []
        for rank in range(degree):
            cut = cut_of(name, shape, sizes, degree, rank)
            data = b"".join(shard_pieces(rows, shape, itemsize, cut))
            shards.append(np.frombuffer(data, np.uint8).reshape(*shard_shape(shape, cut), itemsize))
        assert np.array_equal(join_shards(shards, name, shape, sizes), whole)


def test_kv_heads_are_replicated_when_there_are_more_ranks() -> None:
    tensor = np.arange(6, dtype=np.uint8).reshape(6, 1)
    name = "model.layers.0.self_attn.k_proj.weight"
    shards = [
        b"".join(shard_pieces(tensor, (6, 1), 1, cut_of(name, (6, 1), geometry(), 4, rank)))
        for rank in range(4)
    ]
    assert shards == [b"\0\1\2", b"\0\1\2", b"\3\4\5", b"\3\4\5"]


def test_padding_is_zeros_on_the_last_ranks() -> None:
    tensor = np.full((100, 1), 7, np.uint8)
    cuts = [cut_of("lm_head.weight", (100, 1), geometry(), 4, rank) for rank in range(4)]
    shards = [b"".join(shard_pieces(tensor, (100, 1), 1, cut)) for cut in cuts]
    assert shards == [b"\7" * 32, b"\7" * 32, b"\7" * 32, b"\7" * 4 + bytes(28)]


def test_uncut_and_row_cut_shards_share_the_tensor_s_memory() -> None:
    tensor = np.zeros((8, 4), np.uint8)
    for name, shape in {
        "model.norm.weight": (8, 4),
        "model.layers.0.mlp.up_proj.weight": (8, 4),
    }.items():
        (piece,) = shard_pieces(tensor, shape, 1, cut_of(name, shape, geometry(), 2, 1))
        assert np.shares_memory(np.frombuffer(piece, np.uint8), tensor)


def test_scales_of_fp8_checkpoints_are_cut_with_their_weights() -> None:
    k = "model.layers.0.self_attn.k_proj"
    o = "model.layers.0.self_attn.o_proj"
    sizes = geometry()
    assert cut_of(f"{k}.weight_scale", (256, 1), sizes, 4, 3).start == 128
    assert cut_of(f"{o}.weight_scale", (256, 1), sizes, 4, 3).axis is None
    assert cut_of(f"{o}.weight_scale_inv", (2, 8), sizes, 4, 3).start == 6
    assert cut_of(f"{o}.weight_scale", (), sizes, 4, 3).axis is None


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("model.layers.0.self_attn.q_proj.qweight", (8, 8), "packed quantisations"),
        ("model.layers.0.mlp.up_proj.weight", (7, 8), "does not divide by 2"),
        ("lm_head.weight", (99, 8), "vocab_size is 100"),
    ],
)
def test_what_no_rule_covers_is_refused(name: str, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        cut_of(name, shape, geometry(), 2, 0)
