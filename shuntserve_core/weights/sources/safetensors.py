"""A directory of safetensors files, as Hugging Face checkpoints are.

The format is read here, not with the `safetensors` package, whose numpy side knows neither
bfloat16 nor fp8: cutting needs bytes, not numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from shuntserve_core.errors import UserError
from shuntserve_core.folders import refuse_odd_folder
from shuntserve_core.foreign import (
    MOST_JSON_BYTES,
    file_inside,
    parse_json,
    read_bytes,
    whole_number,
)
from shuntserve_core.quantization import HF_QUANT_CONFIG
from shuntserve_core.weights.checksum import checksum
from shuntserve_core.weights.manifest import Source
from shuntserve_core.weights.sources import SourceTensor
from shuntserve_core.weights.traw import DTYPES, MAX_DIMENSIONS, MOST_ELEMENTS, Header

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that travel with the weights, where there are any."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = MOST_JSON_BYTES  # the format's own limit is 100 MB
_BAD = (ValueError, KeyError, TypeError, AttributeError)
_DTYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
    "I32": "int32",
}


@frozen
class _Place:
    """A tensor's bytes in a file."""

    path: Path
    header: Header
    offset: int

    @property
    def end(self) -> int:
        """Where the next may begin."""
        return self.offset + self.header.data_bytes


@frozen
class _Strange:
    """A tensor of a type that cannot be stored: no fault while nobody needs it."""

    path: Path
    dtype: str


class SafetensorsDirectory:
    """`model.safetensors`, or the shards that `model.safetensors.index.json` names."""

    def __init__(self, directory: Path, source: Source | None = None) -> None:
        self._directory = directory
        self._known_source = source

    @cached_property
    def source(self) -> Source:
        """What it was made with, or else a fingerprint of headers and sizes."""
        if self._known_source:
            return self._known_source
        return Source("safetensors", self._directory.resolve().name, self._fingerprint)

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The copied files that are there.  Raises `UserError` without a `config.json`."""
        refuse_odd_folder(self._directory, weights=True)
        there = [name for name in COPIED if (self._directory / name).is_file()]
        found = {name: read_bytes(file_inside(self._directory, name)) for name in there}
        if "config.json" not in found:
            raise UserError(
                "there is no config.json",
                where=str(self._directory),
                remedy="name the folder of a model, with config.json and its safetensors files",
            )
        return found

    @cached_property
    def tensors(self) -> list[SourceTensor]:
        """Every tensor, in the order of files and offsets."""
        return [SourceTensor(name, place.header) for name, place in self._places.items()]

    def read(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes, mapped; unmapped with the last reference to them."""
        place = self._places[name]
        rows = place.header.shape[0] if place.header.shape else 1
        size = place.header.data_bytes
        if not size:
            return np.zeros((rows, 0), np.uint8)
        mapped = np.memmap(place.path, np.uint8, "r", place.offset, (size,))
        return np.asarray(mapped).reshape(rows, -1)

    @cached_property
    def _places(self) -> dict[str, _Place]:
        return {n: place for n, place in self._all.items() if isinstance(place, _Place)}

    @cached_property
    def unread(self) -> dict[str, str]:
        """Types that no code of ours stands for, by the names of the tensors that have them."""
        return {n: place.dtype for n, place in self._all.items() if isinstance(place, _Strange)}

    @cached_property
    def beside(self) -> object:
        """What NVIDIA's Model Optimizer says of quantised weights, if it does."""
        file = self._directory / HF_QUANT_CONFIG
        if not file.is_file():
            return None
        try:
            document: object = parse_json(read_bytes(file_inside(self._directory, HF_QUANT_CONFIG)))
        except ValueError as error:
            raise UserError(
                f"not JSON: {error}", where=str(file), remedy="download it again"
            ) from error
        return document

    @cached_property
    def _all(self) -> dict[str, _Place | _Strange]:
        places: dict[str, _Place | _Strange] = {}
        for path in self._paths:
            found = _read_header(path)
            if twice := sorted(places.keys() & found.keys()):
                first = places[twice[0]].path.name
                raise UserError(
                    f"tensor {twice[0]} is in {first} already",
                    where=str(path),
                    remedy="keep the files of one checkpoint only",
                )
            places.update(found)
        self._refuse_other_index(places)
        return places

    def _refuse_other_index(self, places: Mapping[str, _Place | _Strange]) -> None:
        """Raise `UserError` where the index says otherwise than the files that it names."""
        for name, file in self._index.items():
            place = places.get(name)
            if place is None or place.path.name != file:
                there = f"in {place.path.name}" if place else "not there"
                raise UserError(
                    f"the index names {file} for tensor {name}, which is {there}",
                    where=str(self._directory / INDEX),
                    remedy="download all files of the checkpoint again, of one revision",
                )

    @cached_property
    def _index(self) -> dict[str, str]:
        """The file of each tensor, as the index has it; empty without one."""
        there = (self._directory / INDEX).is_file()
        return _index_in(file_inside(self._directory, INDEX)) if there else {}

    @cached_property
    def _paths(self) -> list[Path]:
        refuse_odd_folder(self._directory, weights=True)
        there = sorted(path.name for path in self._directory.glob("*.safetensors"))
        names = sorted(set(self._index.values())) or there
        if SINGLE in there and SINGLE not in names:
            raise UserError(
                f"it holds {SINGLE}, and an index that names other files",
                where=str(self._directory),
                remedy=f"keep one: move {SINGLE} away, or {INDEX} and its files",
            )
        paths = [file_inside(self._directory, name) for name in names]
        missing = [path.name for path in paths if not path.is_file()]
        if missing or not paths:
            what = f"{', '.join(missing)} missing" if missing else "there are no safetensors files"
            raise UserError(
                what, where=str(self._directory), remedy="download the checkpoint again"
            )
        return paths

    @property
    def _fingerprint(self) -> str:
        described = [
            f"{path.name} {path.stat().st_size} {name} {place.header} {place.offset}\n".encode()
            for name, place in self._places.items()
            for path in [place.path]
        ]
        return checksum([self.files["config.json"], *described])


def _index_in(index: Path) -> dict[str, str]:
    """The file of each tensor.  Raises `UserError` for anything but plain names."""
    try:
        named = dict(parse_json(read_bytes(index))["weight_map"])
        names = set(named.values())
    except _BAD as error:
        raise UserError(
            "not an index of safetensors files", where=str(index), remedy="download it again"
        ) from error
    for name in names:
        if not isinstance(name, str) or "/" in name or not name.endswith(".safetensors"):
            raise UserError(
                f"{name!r} is no safetensors file beside the index",
                where=str(index),
                remedy="download the index again",
            )
    if not named:
        raise UserError(
            "not an index of safetensors files: it names none",
            where=str(index),
            remedy="download it again",
        )
    return named


def _read_header(path: Path) -> dict[str, _Place | _Strange]:
    """Where each tensor of one file is.  Raises `UserError` for a file that is cut off or wrong."""
    where, size = str(path), path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
            raise UserError(
                "not a safetensors file: no header fits", where=where, remedy="download it again"
            )
        text = file.read(length)
    try:
        document: dict[str, Any] = parse_json(text, unique=True)
        document.pop("__metadata__", None)
        strange = {
            name: _Strange(path, entry["dtype"][:40])
            for name, entry in document.items()
            if entry["dtype"][:40] not in _DTYPES
        }
        places = {
            name: _place(path, 8 + length, entry)
            for name, entry in document.items()
            if name not in strange
        }
    except _BAD as error:
        raise UserError(
            f"damaged safetensors header: {error}", where=where, remedy="download it again"
        ) from error
    ordered = dict(sorted(places.items(), key=lambda item: (item[1].offset, item[1].end)))
    _check_places(ordered, size, where)
    return {**ordered, **strange}


def _check_places(places: dict[str, _Place], size: int, where: str) -> None:
    """Raise `UserError` for tensors that share bytes or lie outside of the file."""
    for name, place in places.items():
        if place.end > size:
            raise UserError(
                f"the file ends inside tensor {name}", where=where, remedy="download it again"
            )
    for (first, before), (second, after) in pairwise(places.items()):
        if after.offset < before.end:
            raise UserError(
                f"tensors {first} and {second} overlap", where=where, remedy="download it again"
            )


def _place(path: Path, start: int, entry: dict[str, Any]) -> _Place:
    if len(entry["shape"]) > MAX_DIMENSIONS:
        raise ValueError(f"{len(entry['shape'])} dimensions, at most {MAX_DIMENSIONS} make sense")
    shape = tuple(whole_number(size, 0, MOST_ELEMENTS) for size in entry["shape"])
    begin, end = (whole_number(offset, 0, 1 << 62) for offset in entry["data_offsets"])
    header = Header(DTYPES[_DTYPES[entry["dtype"]]], shape)
    if end - begin != math.prod(shape) * header.dtype.itemsize:
        raise ValueError(f"{end - begin} bytes for a tensor of {header.data_bytes}")
    return _Place(path, header, start + begin)
