"""What a push will send: every shard with its size, before a byte is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from attrs import frozen

from shuntserve_core.errors import UserError
from shuntserve_core.foreign import parse_json
from shuntserve_core.quantization import merged_with
from shuntserve_core.weights.accounting import account
from shuntserve_core.weights.cutting import Cut, cut_of, shard_shape
from shuntserve_core.weights.geometry import Geometry, geometry_of
from shuntserve_core.weights.layout import CONFIG, ModelName, shard_path
from shuntserve_core.weights.manifest import Source
from shuntserve_core.weights.sources import CheckpointSource, SourceTensor
from shuntserve_core.weights.traw import Header


@frozen
class PlannedShard:
    """One object to come."""

    tensor: SourceTensor
    degree: int
    rank: int
    cut: Cut
    header: Header

    @property
    def path(self) -> str:
        """Its path below the model's prefix."""
        return shard_path(self.degree, self.rank, self.tensor.name)


@frozen
class PushPlan:
    """Every object of a push."""

    name: ModelName
    source: Source
    geometry: Geometry
    degrees: tuple[int, ...]
    files: dict[str, bytes]
    shards: tuple[PlannedShard, ...]
    """Grouped by tensor, in the order of the checkpoint."""

    @property
    def objects(self) -> int:
        """How many objects, the manifest not counted."""
        return len(self.files) + len(self.shards)

    @property
    def total_bytes(self) -> int:
        """Bytes of all objects, the manifest not counted."""
        return sum(map(len, self.files.values())) + self.shard_bytes(self.degrees)

    def shard_bytes(self, degrees: Sequence[int]) -> int:
        """Bytes of the shards of some degrees."""
        return sum(s.header.file_bytes for s in self.shards if s.degree in degrees)

    def by_tensor(self) -> Iterator[tuple[SourceTensor, list[PlannedShard]]]:
        """Each tensor with its shards, so that it is read once."""
        for tensor, shards in groupby(self.shards, key=lambda shard: shard.tensor):
            yield tensor, list(shards)


def plan_push(source: CheckpointSource, name: ModelName, degrees: Iterable[int]) -> PushPlan:
    """Work out every object.

    Raises `UserError` for a model that cannot be cut for these degrees, whose tensors are not those
    that its config implies, or whose weights are quantised.
    """
    files = source.files
    where = f"{source.source.name}: {CONFIG}"
    geometry = geometry_of(files[CONFIG], where=where)
    wanted = tuple(sorted(set(degrees)))
    for degree in wanted:
        refusal = geometry.refuse(degree)
        if refusal:
            raise UserError(
                refusal, where=f"--tp {degree}", remedy="choose another tensor-parallel degree"
            )
    tensors = account(
        source, merged_with(parse_json(files[CONFIG]), source.beside), source.source.name
    )
    shards = tuple(
        _plan_shard(tensor, geometry, degree, rank)
        for tensor in tensors
        for degree in wanted
        for rank in range(degree)
    )
    return PushPlan(name, source.source, geometry, wanted, files, shards)


def _plan_shard(tensor: SourceTensor, geometry: Geometry, degree: int, rank: int) -> PlannedShard:
    shape = tensor.header.shape
    cut = cut_of(tensor.name, shape, geometry, degree, rank)
    header = Header(tensor.header.dtype, shard_shape(shape, cut))
    return PlannedShard(tensor, degree, rank, cut, header)
