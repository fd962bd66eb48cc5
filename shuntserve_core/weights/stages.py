"""Which tensors a stage needs, and where they may lie in memory."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import frozen

from shuntserve_core.errors import UserError
from shuntserve_core.weights.cutting import EMBEDDING, LM_HEAD
from shuntserve_core.weights.layout import shard_path
from shuntserve_core.weights.manifest import Manifest, TensorRecord, parse_shard_path

ALIGNMENT = 256
"""Bytes: what GPU copies and vectorised CPU kernels like the start of a tensor to be aligned to."""

_FUSED_PARTS = (("q", "k", "v"), ("gate", "up"))
_FUSED = re.compile(r"\.(q|k|v|gate|up)_proj\.(.+)$")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@frozen
class TensorEntry:
    """One tensor of a stage, as one rank holds it."""

    name: str
    """What the engine calls it: the checkpoint's name, or `lm_head.weight` for a tied table."""
    key: str
    """The object in the store."""
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    """Bytes of data, without the header."""
    offset: int
    """Where it begins, in bytes, if the whole stage is laid out in one region."""
    layer: int | None
    """The transformer layer that it belongs to; None for embeddings, final norm and head."""
    record: TensorRecord


def stage_tensors(
    manifest: Manifest, tp: int, rank: int, layers: range, *, first: bool, last: bool
) -> list[TensorEntry]:
    """The tensors of layers `layers` on `rank` of `tp`, in the order in which they are used.

    `first` adds the embedding table, `last` the final norm and the output projection.  With tied
    embeddings a stage that is last but not first gets the table under the name `lm_head.weight`; a
    stage that is both holds it once, as `model.embed_tokens.weight`.
    Raises `UserError` where the store has no such degree, rank or layers.
    """
    _check(manifest, tp, rank, layers)
    records: dict[str, TensorRecord] = {}
    for path, record in manifest.tensors.items():
        degree, shard, name = parse_shard_path(path)
        if (degree, shard) == (tp, rank):
            records[name] = record
    _check_complete(manifest, set(records), layers, first, last)
    chosen = [(name, name) for name in records if _wanted(name, layers, first, last)]
    if last and not first and manifest.geometry.tied_embeddings:
        chosen.append((LM_HEAD, EMBEDDING))
    chosen.sort(key=lambda pair: _order(pair[0]))
    return _lay_out(
        manifest, tp, rank, [(name, stored, records[stored]) for name, stored in chosen]
    )


def whole_model(manifest: Manifest, tp: int, rank: int) -> list[TensorEntry]:
    """Every tensor of one rank: the single stage of a pipeline."""
    return stage_tensors(manifest, tp, rank, range(manifest.geometry.layers), first=True, last=True)


def region_bytes(entries: Sequence[TensorEntry]) -> int:
    """Bytes of one region that holds the whole stage, each tensor at its `offset`."""
    return max((entry.offset + _aligned(entry.nbytes) for entry in entries), default=0)


def _lay_out(
    manifest: Manifest, tp: int, rank: int, chosen: Sequence[tuple[str, str, TensorRecord]]
) -> list[TensorEntry]:
    entries: list[TensorEntry] = []
    offset = 0
    for name, stored, record in chosen:
        entries.append(
            TensorEntry(
                name=name,
                key=manifest.name.prefix + shard_path(tp, rank, stored),
                dtype=record.dtype,
                shape=record.shape,
                nbytes=record.header.data_bytes,
                offset=offset,
                layer=layer_of(name),
                record=record,
            )
        )
        offset += _aligned(record.header.data_bytes)
    return entries


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to, by its name."""
    match = _LAYER.match(name)
    return int(match.group(1)) if match else None


def _wanted(name: str, layers: range, first: bool, last: bool) -> bool:
    layer = layer_of(name)
    if layer is not None:
        return layer in layers
    return first if name == EMBEDDING else last


def _order(name: str) -> tuple[int, int, int, str, int]:
    """Parts that engines fuse (q with k and v, gate with up) come one right after the other."""
    layer = layer_of(name)
    if layer is None:
        return (0 if name == EMBEDDING else 2, 0, 0, name, 0)
    match = _FUSED.search(name)
    if match is None:
        return (1, layer, len(_FUSED_PARTS), name, 0)
    part, suffix = match.groups()
    group = next(i for i, parts in enumerate(_FUSED_PARTS) if part in parts)
    return (1, layer, group, suffix, _FUSED_PARTS[group].index(part))


def _check_complete(
    manifest: Manifest, names: set[str], layers: range, first: bool, last: bool
) -> None:
    """A store that was filled by pulling stages may lack what another stage needs."""
    present = {layer_of(name) for name in names}
    missing = [f"layer {layer}" for layer in layers if layer not in present]
    if (first or (last and manifest.geometry.tied_embeddings)) and EMBEDDING not in names:
        missing.append(EMBEDDING)
    if last and not manifest.geometry.tied_embeddings and LM_HEAD not in names:
        missing.append(LM_HEAD)
    if missing:
        raise UserError(
            f"the store holds only a part of the model: {', '.join(missing)} missing",
            where=str(manifest.name),
            remedy="pull this stage too",
        )


def _check(manifest: Manifest, tp: int, rank: int, layers: range) -> None:
    where, count = str(manifest.name), manifest.geometry.layers
    if tp not in manifest.degrees:
        there = ", ".join(map(str, manifest.degrees))
        raise UserError(
            f"the store has no shards for tensor-parallel degree {tp}",
            where=where,
            remedy=f"it has {there}; push it with --tp {tp}",
        )
    if not 0 <= rank < tp:
        raise UserError(f"no rank {rank} in a group of {tp}", where=where, remedy=f"0 to {tp - 1}")
    if layers.step != 1 or not 0 <= layers.start <= layers.stop <= count:
        raise UserError(
            f"no layers {layers.start}:{layers.stop}", where=where, remedy=f"it has 0:{count}"
        )
