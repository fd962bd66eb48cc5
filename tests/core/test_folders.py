"""Folders that are no models: what they are, and the way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shuntserve_core.config.model_facts import facts_from_directory
from shuntserve_core.errors import UserError
from shuntserve_core.folders import refuse_odd_folder, refuse_tokenizer
from shuntserve_core.weights import ModelName
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.sources import open_source
from tests.core.weights.models import write_llama

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")


def pickled(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"")


def pointers(folder: Path) -> None:
    write_llama(folder)
    (folder / "model.safetensors").write_bytes(POINTER)


def dangling(folder: Path) -> None:
    write_llama(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blobs/gone")


def dangling_config(folder: Path) -> None:
    (folder / "config.json").symlink_to("../blobs/gone")


def cached_model(folder: Path) -> None:
    (folder / "snapshots" / "abc").mkdir(parents=True)


def cache(folder: Path) -> None:
    (folder / "models--org--tiny" / "snapshots").mkdir(parents=True)


def a_gguf(folder: Path) -> None:
    (folder / "m.gguf").write_bytes(b"")


CASES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "adapter": (adapter, "LoRA adapter", "merge_and_unload"),
    "pickled": (pickled, r"pickled \(pytorch_model\.bin\)", "save_pretrained"),
    "pointers": (pointers, "Git LFS pointer", "git lfs pull"),
    "dangling": (dangling, "link to ../blobs/gone, which is not there", "cp -rL"),
    "dangling config": (dangling_config, "config.json is a link", "download it again"),
    "cached model": (cached_model, "folder of the hub's cache", "/snapshots/abc"),
    "cache": (cache, "root of the hub's cache", "org/tiny"),
    "gguf": (a_gguf, "GGUF", "/m.gguf"),
    "nothing": (lambda _: None, "no config.json", "config.json and its safetensors"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_push_names_it(name: str, tmp_path: Path) -> None:
    make, says, remedy = CASES[name]
    folder = tmp_path / "m"
    folder.mkdir()
    make(folder)
    with pytest.raises(UserError, match=says) as caught:
        plan_push(open_source(str(folder))[0], ModelName("local", "m"), [1])
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["adapter", "dangling config", "cached model", "cache"])
def test_so_does_the_configuration(name: str, tmp_path: Path) -> None:
    make, says, remedy = CASES[name]
    make(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        facts_from_directory(tmp_path)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["tokenizer.model"], "only SentencePiece's tokenizer.model"),
        (["tekken.json"], "only Mistral's tekken.json"),
        ([], "no tokenizer.json"),
    ],
)
def test_other_tokenizers(files: list[str], says: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=says) as caught:
        refuse_tokenizer(tmp_path, "serve.model_dir")
    assert ("save_pretrained" in caught.value.remedy) == bool(files)
    assert "config.json and tokenizer.json" in caught.value.remedy or files


def test_a_model_is_taken(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m")
    (folder / "tokenizer.json").write_text("{}")
    refuse_odd_folder(folder, weights=True)
    refuse_tokenizer(folder, "")
    assert plan_push(open_source(str(folder))[0], ModelName("local", "m"), [1]).objects > 2
