"""Folders that look like a model and are none, each with the way out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shuntserve_core.errors import UserError

_POINTER = b"version https://git-lfs"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_LOOKED_AT = (".json", ".safetensors", ".jinja", ".txt", ".model")


def refuse_odd_folder(directory: Path, *, weights: bool) -> None:
    """Raise `UserError` for a folder that is known not to be a usable model directory.

    With `weights`, for what has no safetensors but something else, too.
    """
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError:
        return  # whoever reads from it says so
    where = str(directory)
    _refuse_cache(directory, names, where)
    _refuse_broken_files(directory, names, where)
    if any(name.startswith("adapter_") for name in names) and not _has_model(names):
        raise UserError(
            "it holds a LoRA adapter (adapter_config.json), not a model",
            where=where,
            remedy="merge it into its base model (peft: merge_and_unload) and use that",
        )
    if weights and not any(name.endswith(".safetensors") for name in names):
        _refuse_other_weights(names, where)


def _has_model(names: Sequence[str]) -> bool:
    return any(n.endswith(".safetensors") and not n.startswith("adapter_") for n in names)


def _refuse_cache(directory: Path, names: Sequence[str], where: str) -> None:
    if "config.json" in names:
        return
    if "snapshots" in names:
        revisions = sorted(path.name for path in (directory / "snapshots").glob("*"))
        remedy = f"name one revision: {where}/snapshots/{revisions[-1] if revisions else 'COMMIT'}"
        raise UserError(
            "it is a folder of the hub's cache, not a model", where=where, remedy=remedy
        )
    cached = [name for name in names if name.startswith("models--")]
    if cached:
        name = cached[0].removeprefix("models--").replace("--", "/")
        raise UserError(
            "it is the root of the hub's cache, not a model",
            where=where,
            remedy=f"name a model by its id, such as {name}, or one folder below snapshots/",
        )


def _refuse_broken_files(directory: Path, names: Sequence[str], where: str) -> None:
    for name in names:
        path = directory / name
        if not name.endswith(_LOOKED_AT):
            continue
        if path.is_symlink() and not path.exists():
            raise UserError(
                f"{name} is a link to {path.readlink()}, which is not there",
                where=where,
                remedy="download it again, or copy the folder with links followed (cp -rL)",
            )
        if path.is_file() and _begins(path, _POINTER):
            raise UserError(
                f"{name} is a Git LFS pointer, not the file itself",
                where=where,
                remedy="run `git lfs install && git lfs pull` in the folder",
            )


def _begins(path: Path, start: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(start)) == start
    except OSError:
        return False


def _refuse_other_weights(names: Sequence[str], where: str) -> None:
    pickled = [name for name in names if name.endswith(_PICKLED)]
    if pickled:
        raise UserError(
            f"its weights are pickled ({pickled[0]}), which can run code when they are read",
            where=where,
            remedy="save them as safetensors: transformers' from_pretrained, then save_pretrained",
        )
    files = [name for name in names if name.endswith(".gguf")]
    if files:
        raise UserError(
            "its weights are GGUF", where=where, remedy=f"name the file: {where}/{files[0]}"
        )


def refuse_tokenizer(directory: Path, where: str) -> None:
    """Raise `UserError` for a model directory without `tokenizer.json`, by what it has instead."""
    if (directory / "tokenizer.json").is_file():
        return
    refuse_odd_folder(directory, weights=False)
    made = "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers makes one"
    for name, kind in (("tekken.json", "Mistral's"), ("tokenizer.model", "SentencePiece's")):
        if (directory / name).is_file():
            raise UserError(
                f"{directory} has no tokenizer.json, only {kind} {name}", where=where, remedy=made
            )
    raise UserError(
        f"{directory} has no tokenizer.json",
        where=where,
        remedy="give the directory with config.json and tokenizer.json",
    )
