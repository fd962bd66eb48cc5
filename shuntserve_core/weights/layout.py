"""Where things are in a weight store."""

from __future__ import annotations

import re

from attrs import frozen

from shuntserve_core.errors import UserError

ROOT = "raw"
MANIFEST = "manifest.json"
LOCK = ".lock"
CONFIG = "config.json"

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


@frozen
class ModelName:
    """`<base>/<model>`: what a model is called in a store, as on Hugging Face."""

    base: str
    model: str

    def __str__(self) -> str:
        return f"{self.base}/{self.model}"

    @property
    def prefix(self) -> str:
        """Every key of this model begins so."""
        return f"{ROOT}/{self.base}/{self.model}/"

    @property
    def manifest_key(self) -> str:
        """The object that makes the model visible."""
        return self.prefix + MANIFEST

    @property
    def lock_key(self) -> str:
        """The object that a push holds."""
        return self.prefix + LOCK


def parse_model_name(text: str, *, where: str = "") -> ModelName:
    """Parse `base/model`.  Raises `UserError` for anything that is not two plain names."""
    base, slash, model = text.partition("/")
    if not slash or not _PART.fullmatch(base) or not _PART.fullmatch(model):
        raise UserError(
            f"{text!r} is not the name of a model",
            where=where,
            remedy="write BASE/MODEL, for example HuggingFaceTB/SmolLM2-135M-Instruct",
        )
    return ModelName(base, model)


def shard_path(degree: int, rank: int, tensor: str) -> str:
    """Path of one shard below the model's prefix."""
    return f"TP{degree}/shard{rank}/{tensor}.bin"
