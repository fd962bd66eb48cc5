"""Folders that are no models: what they are, and the way out."""

from __future__ import annotations

import argparse
import base64
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shuntserve_core.config.model_facts import facts_from_directory
from shuntserve_core.errors import UserError
from shuntserve_core.folders import refuse_odd_folder, refuse_tokenizer
from shuntserve_core.text.tokenizer import load_tokenizer
from shuntserve_core.weights import ModelName
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.sources import open_source
from tests.core.weights.checkpoints import tensors_of
from tests.core.weights.kinds import made
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


def cached_revisions(folder: Path) -> None:
    for revision in ("abc", "zzz"):
        (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")


def cache_home(folder: Path) -> None:
    cache(folder / "hub")


def own_form(folder: Path) -> None:
    (folder / "params.json").write_text("{}")
    (folder / "consolidated.safetensors").write_bytes(b"")


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
    "cached revisions": (cached_revisions, "folder of the hub's cache", "/snapshots/abc"),
    "cache home": (cache_home, "root of the hub's cache", "org/tiny"),
    "own form": (own_form, r"own form \(params\.json\)", "config.json and safetensors"),
    "cache": (cache, "root of the hub's cache", "org/tiny"),
    "gguf": (a_gguf, "GGUF", "name the file: /"),
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


@pytest.mark.parametrize(
    "name",
    ["adapter", "dangling config", "cached model", "cache", "cached revisions", "own form"],
)
def test_so_does_the_configuration(name: str, tmp_path: Path) -> None:
    make, says, remedy = CASES[name]
    make(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        facts_from_directory(tmp_path)
    assert remedy in caught.value.remedy


def test_the_configuration_names_a_gguf_file(tmp_path: Path) -> None:
    a_gguf(tmp_path)
    with pytest.raises(UserError, match="GGUF") as caught:
        facts_from_directory(tmp_path)
    assert f"weights push {tmp_path}/m.gguf" in caught.value.remedy
    assert "weights pull" in caught.value.remedy


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json") as caught:
        load_tokenizer(tmp_path)
    assert "config.json and tokenizer.json" in caught.value.remedy


def test_a_tokenizer_that_is_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(UserError, match=r"tokenizer\.json is a Git LFS pointer") as caught:
        load_tokenizer(tmp_path)
    assert "git lfs pull" in caught.value.remedy
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to("../blobs/gone")
    with pytest.raises(UserError, match="is a link to") as caught:
        refuse_tokenizer(tmp_path, "serve.model_dir")
    assert "cp -rL" in caught.value.remedy


def sentencepiece_model(folder: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        input=argparse.__file__,
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    (folder / "config.json").write_text('{"model_type": "llama"}')


def tekken(folder: Path) -> None:
    tokens = [*(bytes([byte]) for byte in range(256)), b"th", b"the"]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(tokens)
    ]
    config = {
        "pattern": r"[^\s]+|\s+",
        "num_vocab_tokens": len(tokens),
        "default_vocab_size": 1000 + len(tokens),
        "default_num_special_tokens": 1000,
        "version": "v3",
    }
    (folder / "tekken.json").write_text(json.dumps({"config": config, "vocab": vocab}))
    (folder / "config.json").write_text('{"model_type": "mistral"}')


@pytest.mark.parametrize(
    ("make", "package", "says"),
    [
        (sentencepiece_model, "sentencepiece", "only SentencePiece's tokenizer.model"),
        (tekken, "mistral_common", "only Mistral's tekken.json"),
    ],
)
def test_the_remedy_for_other_tokenizers_works(
    make: Callable[[Path], None], package: str, says: str, tmp_path: Path
) -> None:
    pytest.importorskip(package)
    make(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=says):
        refuse_tokenizer(tmp_path, "serve.model_dir")
    run(caught.value.remedy)
    refuse_tokenizer(tmp_path, "serve.model_dir")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("the thing", add_special_tokens=False)) == "the thing"


def test_the_remedy_for_pickled_weights_works(tmp_path: Path) -> None:
    folder = made(tmp_path / "m", "llama")
    torch.save(tensors_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="pickled") as caught:
        plan_push(open_source(str(folder))[0], ModelName("local", "m"), [1])
    run(caught.value.remedy)
    assert plan_push(open_source(str(folder))[0], ModelName("local", "m"), [1]).objects > 2


def test_the_remedy_for_a_folder_of_the_cache_works(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--tiny"
    files = made(folder / "snapshots" / "abc", "llama")
    blobs = folder / "blobs"
    blobs.mkdir()
    for file in list(files.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(Path("..", "..", "blobs", file.name))
    with pytest.raises(UserError, match="cache") as caught:
        facts_from_directory(folder)
    named = Path(caught.value.remedy.removeprefix("name one revision: "))
    assert facts_from_directory(named)["hidden"] == 128
    assert plan_push(open_source(str(named))[0], ModelName("local", "m"), [1]).objects > 2


def run(remedy: str) -> None:
    """The command in a remedy."""
    command = shlex.split(remedy[remedy.index("python -c") :])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, *command[1:]], check=True, env=environment, timeout=100)


def test_a_model_is_taken(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m")
    (folder / "tokenizer.json").write_text("{}")
    refuse_odd_folder(folder, weights=True)
    refuse_tokenizer(folder, "")
    assert plan_push(open_source(str(folder))[0], ModelName("local", "m"), [1]).objects > 2
