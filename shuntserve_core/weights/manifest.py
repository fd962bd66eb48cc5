"""The manifest: what a model in a store consists of, written last.

A model without a manifest is not there.  The manifest is JSON in one canonical form with a
checksum over itself, so that a flipped byte anywhere in it is found too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import cattrs
from attrs import evolve, field, frozen

from shuntserve_core.errors import UserError
from shuntserve_core.foreign import MOST_FILE_BYTES, parse_json, whole_number
from shuntserve_core.weights.checksum import checksum
from shuntserve_core.weights.geometry import Geometry
from shuntserve_core.weights.layout import ModelName, parse_model_name
from shuntserve_core.weights.traw import DTYPES, MAX_DIMENSIONS, MOST_ELEMENTS, Header, header_of

FORMAT = "shuntserve-weights"
FORMAT_VERSION = 1

_SHARD = re.compile(r"TP(\d{1,4})/shard(\d{1,4})/([^/\0]{1,200})\.bin")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_BAD = (KeyError, TypeError, ValueError, AttributeError, cattrs.BaseValidationError)
MOST_OBJECT_BYTES = 1 << 40
"""Of one shard of one tensor; the largest of known models have 4 GiB."""


@frozen
class Source:
    """Where the weights came from."""

    kind: str
    """`hub`, `safetensors` or `gguf`."""
    name: str
    revision: str
    """A commit id for `hub`; otherwise a fingerprint of the files."""


@frozen
class FileRecord:
    """An object that is copied as it is: config, tokenizer."""

    size: int
    checksum: str


@frozen
class TensorRecord:
    """One shard of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    checksum: str
    """Of the whole object: header and data."""

    @property
    def header(self) -> Header:
        """The header that the object must begin with."""
        return header_of(self.dtype, self.shape)

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self.header.file_bytes


@frozen
class Manifest:
    """Everything about one model in a store; paths are relative to the model's prefix."""

    base: str
    model: str
    tool: str
    """Name and version of what wrote it."""
    source: Source
    geometry: Geometry
    files: Mapping[str, FileRecord] = field(factory=dict)
    tensors: Mapping[str, TensorRecord] = field(factory=dict)

    @property
    def name(self) -> ModelName:
        """Base and model."""
        return ModelName(self.base, self.model)

    @property
    def degrees(self) -> tuple[int, ...]:
        """Tensor-parallel degrees that it was cut for, ascending."""
        return tuple(sorted({degree for degree, _, _ in map(parse_shard_path, self.tensors)}))

    @property
    def objects(self) -> dict[str, FileRecord | TensorRecord]:
        """Files and tensors together."""
        return {**self.files, **self.tensors}

    @property
    def total_bytes(self) -> int:
        """Bytes of all objects, the manifest not counted."""
        return sum(record.size for record in self.objects.values())

    def merged(self, other: Manifest) -> Manifest:
        """This manifest with the degrees of an older one of the same source added."""
        return evolve(self, tensors={**other.tensors, **self.tensors})


def parse_shard_path(path: str) -> tuple[int, int, str]:
    """Degree, rank and tensor name of a shard's path."""
    match = _SHARD.fullmatch(path)
    if match is None:
        raise ValueError(f"{path!r} is not the path of a shard")
    degree, rank, tensor = match.groups()
    return int(degree), int(rank), tensor


def encode_manifest(manifest: Manifest) -> bytes:
    """The canonical bytes: equal manifests are equal byte for byte."""
    body = cattrs.unstructure(manifest)
    document = {"format": FORMAT, "version": FORMAT_VERSION, **body}
    document["checksum"] = checksum([_canonical(document)])
    return _canonical(document)


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"


def decode_manifest(data: bytes, *, where: str) -> Manifest:
    """Read a manifest.  Raises `UserError` for damage, or for a format that is not ours."""
    try:
        document = parse_json(data)
        found, version = document["format"], document["version"]
        claimed = document.pop("checksum")
    except _BAD as error:
        raise UserError(
            "the manifest is damaged: not readable as JSON",
            where=where,
            remedy="push the model again with --replace",
        ) from error
    if found != FORMAT or version != FORMAT_VERSION:
        raise UserError(
            f"this is {found!r} version {version!r}",
            where=where,
            remedy=f"this version of shuntserve reads {FORMAT!r} version {FORMAT_VERSION}",
        )
    if checksum([_canonical(document)]) != claimed:
        raise UserError(
            "the manifest is damaged: its checksum is wrong",
            where=where,
            remedy="push the model again with --replace",
        )
    try:
        manifest = _structure(document)
    except (*_BAD, UserError) as error:
        raise UserError(
            "the manifest is damaged: not what the format says",
            where=where,
            remedy="push the model again with --replace",
        ) from error
    if encode_manifest(manifest) != data:
        raise UserError(
            "the manifest is damaged: not in its canonical form",
            where=where,
            remedy="push the model again with --replace",
        )
    return manifest


def _structure(document: dict[str, Any]) -> Manifest:
    manifest = cattrs.structure(document, Manifest)
    parse_model_name(str(manifest.name))
    for path, file in manifest.files.items():
        if not _FILE.fullmatch(path):
            raise ValueError(f"{path[:80]!r} is not the name of a file")
        whole_number(file.size, 0, MOST_FILE_BYTES)
    for path, record in manifest.tensors.items():
        parse_shard_path(path)
        _check_record(record)
    return manifest


def _check_record(record: TensorRecord) -> None:
    """Raise `ValueError` for what no tensor is: its size is what memory is made for."""
    if record.dtype not in DTYPES:
        raise ValueError(f"unknown dtype {record.dtype[:40]!r}")
    if len(record.shape) > MAX_DIMENSIONS:
        raise ValueError(f"{len(record.shape)} dimensions")
    for size in record.shape:
        whole_number(size, 0, MOST_ELEMENTS)
    whole_number(record.size, 0, MOST_OBJECT_BYTES)
