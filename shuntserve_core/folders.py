"""Folders that look like a model and are none, each with the way out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shuntserve_core.errors import UserError
from shuntserve_core.foreign import read_bytes

_CACHED = "models--"
"""What the hub's cache puts before a model's name."""
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
    if "params.json" in names and "config.json" not in names:
        raise UserError(
            "it is in its maker's own form (params.json), not in that of transformers",
            where=where,
            remedy="name a folder with config.json and safetensors, as most repositories have too",
        )
    if not any(name.endswith(".safetensors") for name in names):
        _refuse_other_weights(directory, names, weights)


def _has_model(names: Sequence[str]) -> bool:
    return any(n.endswith(".safetensors") and not n.startswith("adapter_") for n in names)


def _refuse_cache(directory: Path, names: Sequence[str], where: str) -> None:
    if "config.json" in names:
        return
    if "snapshots" in names or directory.name.startswith(_CACHED):
        revision = _revision(directory)
        raise UserError(
            "it is a folder of the hub's cache, not a model",
            where=where,
            remedy=f"name one revision: {where}/snapshots/{revision}"
            if revision
            else "it holds no revision: download the model again",
        )
    root = directory / "hub" if "hub" in names else directory
    cached = sorted(path.name for path in root.glob(f"{_CACHED}*"))
    if cached:
        name = cached[0].removeprefix(_CACHED).replace("--", "/")
        raise UserError(
            "it is the root of the hub's cache, not a model",
            where=where,
            remedy=f"name a model by its id, such as {name}, or one folder below snapshots/",
        )


def _revision(directory: Path) -> str:
    """The one that `main` is, or else the last that there is; empty where there is none."""
    there = sorted(path.name for path in (directory / "snapshots").glob("*"))
    try:
        main = read_bytes(directory / "refs" / "main", 100).decode().strip()
    except (OSError, ValueError, UserError):
        main = ""
    return main if main in there else there[-1] if there else ""


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


def _refuse_other_weights(directory: Path, names: Sequence[str], weights: bool) -> None:
    pickled = [name for name in names if name.endswith(_PICKLED)]
    if weights and pickled:
        raise UserError(
            f"its weights are pickled ({pickled[0]}), which can run code when they are read",
            where=str(directory),
            remedy=f"save them as safetensors: {_again('AutoModelForCausalLM', directory)}",
        )
    files = [name for name in names if name.endswith(".gguf")]
    if files and (weights or "config.json" not in names):
        file = directory / files[0]
        raise UserError(
            "its weights are GGUF",
            where=str(directory),
            remedy=f"name the file: {file}"
            if weights
            else f"push it (shuntserve weights push {file} STORE), and name the folder that "
            "`shuntserve weights pull` makes of it",
        )


def _again(loader: str, directory: Path) -> str:
    """A command that has transformers read a folder and write it in its own form."""
    folder = repr(str(directory))
    code = f"from transformers import {loader} as T; T.from_pretrained({folder})"
    return f'python -c "{code}.save_pretrained({folder})"'


def refuse_tokenizer(directory: Path, where: str) -> None:
    """Raise `UserError` for a model directory without `tokenizer.json`, by what it has instead."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    _refuse_broken_files(
        directory, [name for name in names if not name.endswith(".safetensors")], str(directory)
    )
    if (directory / "tokenizer.json").is_file():
        return
    refuse_odd_folder(directory, weights=False)
    others = {
        "tekken.json": ("Mistral's", "PreTrainedTokenizerFast"),
        "tokenizer.model": ("SentencePiece's", "AutoTokenizer"),
    }
    for name, (kind, loader) in others.items():
        if (directory / name).is_file():
            raise UserError(
                f"{directory} has no tokenizer.json, only {kind} {name}",
                where=where,
                remedy=f"make it: {_again(loader, directory)}",
            )
    raise UserError(
        f"{directory} has no tokenizer.json",
        where=where,
        remedy="give the directory with config.json and tokenizer.json",
    )
