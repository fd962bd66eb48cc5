from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.errors import UserError
from shuntserve_core.weights.geometry import Geometry, geometry_of
from shuntserve_core.weights.manifest import (
    FileRecord,
    Manifest,
    Source,
    TensorRecord,
    decode_manifest,
    encode_manifest,
)

MANIFEST = Manifest(
    base="org",
    model="tiny",
    tool="shuntserve 1",
    source=Source("hub", "org/tiny", "abc"),
    geometry=Geometry("qwen3", 2, 4, 2, 100, tied_embeddings=True),
    files={"config.json": FileRecord(10, "xxh3-128:00")},
    tensors={"TP2/shard1/model.norm.weight.bin": TensorRecord("float16", (4, 5), "xxh3-128:11")},
)
ENCODED = encode_manifest(MANIFEST)


def test_round_trip_and_sums() -> None:
    assert decode_manifest(ENCODED, where="here") == MANIFEST
    assert MANIFEST.degrees == (2,)
    assert MANIFEST.total_bytes == 10 + 24 + 16 + 40


@given(position=st.integers(0, len(ENCODED) - 1), flip=st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_any_flipped_byte_is_found(position: int, flip: int) -> None:
    damaged = bytearray(ENCODED)
    damaged[position] ^= flip
    with pytest.raises(UserError, match=r"^here: (the manifest is damaged|this is )"):
        decode_manifest(bytes(damaged), where="here")


@given(st.binary(max_size=50) | st.integers(0, len(ENCODED) - 1).map(lambda n: ENCODED[:n]))
@settings(max_examples=100, deadline=None)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="here"):
        decode_manifest(data, where="here")


def test_merging_adds_degrees() -> None:
    other = evolve(
        MANIFEST, tensors={"TP1/shard0/model.norm.weight.bin": TensorRecord("float16", (8,), "x")}
    )
    assert MANIFEST.merged(other).degrees == (1, 2)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"model_type": "mamba"}', "models of type 'mamba' cannot be cut"),
        (b'{"model_type": "llama"}', "num_attention_heads: expected a whole number from 1 to"),
    ],
)
def test_a_wrong_config_is_refused_with_the_reason(config: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        geometry_of(config)
