"""Where weights come from: what they have in common, and which reader a name asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from shuntserve_core.errors import UserError
from shuntserve_core.weights.layout import ModelName, parse_model_name
from shuntserve_core.weights.manifest import Source
from shuntserve_core.weights.traw import Header


@frozen
class SourceTensor:
    """One tensor of a checkpoint."""

    name: str
    """As in a Hugging Face checkpoint: `model.layers.0.self_attn.q_proj.weight`."""
    header: Header
    """Element type and shape."""


class CheckpointSource(Protocol):
    """An uncut checkpoint, read tensor by tensor."""

    @property
    def source(self) -> Source:
        """What the manifest will say of it."""
        ...

    @property
    def files(self) -> dict[str, bytes]:
        """`config.json`, tokenizer and the like, to be copied as they are."""
        ...

    @property
    def tensors(self) -> list[SourceTensor]:
        """Every tensor, without its data."""
        ...

    @property
    def unread(self) -> Mapping[str, str]:
        """Types of tensors that cannot be read, by name: whoever needs one must refuse."""
        ...

    @property
    def beside(self) -> object:
        """The document in `hf_quant_config.json`, or None."""
        ...

    def read(self, name: str) -> NDArray[np.uint8]:
        """Bytes of a tensor, shape (first dimension, bytes a row); memory lasts as long as it."""
        ...


def open_source(text: str) -> tuple[CheckpointSource, ModelName]:
    """Open a directory of safetensors, a GGUF file or a Hugging Face id (`ID@REVISION`).

    Returns it with the name that it gets in a store unless another is asked for.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        from shuntserve_core.weights.sources.safetensors import SafetensorsDirectory

        return SafetensorsDirectory(path), _local_name(path.resolve().name)
    if path.suffix == ".gguf":
        from shuntserve_core.weights.sources.gguf import GgufFile

        if not path.is_file():
            raise UserError("there is no such file", where=text, remedy="correct the name")
        return GgufFile(path), _local_name(path.stem)
    return _from_hub(text)


def _local_name(name: str) -> ModelName:
    return parse_model_name(f"local/{name}", where="the source's name")


def _from_hub(text: str) -> tuple[CheckpointSource, ModelName]:
    repository, _, revision = text.partition("@")
    try:
        name = parse_model_name(repository)
    except UserError as error:
        raise UserError(
            "neither a directory, nor a .gguf file, nor a Hugging Face id",
            where=text,
            remedy="name one that is there, or BASE/NAME of the hub",
        ) from error
    from shuntserve_core.weights.sources.hub import download

    return download(repository, revision or None), name
