from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = "local/tiny"


def run(*arguments: object, status: int = 0) -> str:
    """Run `shuntserve weights`; its output, or its errors where it fails."""
    command = [sys.executable, "-c", "from shuntserve_core.cli import main; main()", "weights"]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stderr if status == 2 else done.stdout


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "store", tmp_path / "copy"
    for path in paths:
        path.mkdir()
    return paths


def test_a_model_s_life(checkpoint: Path, stores: tuple[Path, Path]) -> None:
    store, copy = stores
    dry = json.loads(run("push", checkpoint, store, "--tp", "1,4", "--dry-run", "--json"))
    assert list(store.iterdir()) == []
    pushed = json.loads(run("push", checkpoint, store, "--tp", "1,4", "--json"))
    assert pushed["sent_bytes"] == pushed["nbytes"] == dry["bytes"]
    assert dry["degrees"]["4"]["objects"] == 4 * dry["degrees"]["1"]["objects"] == 120

    assert run("ls", store).startswith("local/tiny  TP 1,4  151 objects")
    assert "all right" in run("verify", MODEL, store, "--deep")

    stage = ("--tp", "4", "--rank", "2", "--layers", "1:2")
    assert json.loads(run("pull", MODEL, store, copy, *stage, "--json"))["objects"] == 10
    shards = [path.parent.name for path in copy.rglob("*.bin")]
    assert shards == ["shard2"] * 9
    assert "all right" in run("verify", MODEL, copy, "--deep")
    run("pull", MODEL, store, copy)
    assert run("ls", copy) == run("ls", store)

    shard = store / "raw/local/tiny/TP4/shard0/model.norm.weight.bin"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")
    found = json.loads(run("verify", MODEL, store, "--deep", "--json", status=1))
    assert [problem["what"] for problem in found["problems"]] == ["damaged: its checksum is wrong"]

    assert "removed 151 objects" in run("rm", MODEL, store, "--yes")
    assert run("ls", store) == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["push", "{checkpoint}", "{store}", "--tp", "3"], "8 attention heads do not divide by 3"),
        (["push", "{checkpoint}", "{store}", "--tp", "a"], "'a' is not a list of whole numbers"),
        (["push", "{checkpoint}", "{store}", "--name", "x"], "--name: 'x' is not the name of a"),
        (["push", "{checkpoint}", "{store}/none"], "there is no such directory; create it"),
        (["push", "{checkpoint}", "s4://bucket"], "unknown weight-store 's4'; available: file, s3"),
        (["push", "no/such/place", "{store}"], "neither a directory, nor a .gguf file"),
        (
            ["verify", "a/b", "{store}"],
            "the store has no complete model a/b; complete models: none",
        ),
        (["pull", "a/b", "{store}", "{store}", "--rank", "1"], "--rank needs --tp"),
        (["pull", "a/b", "{store}", "{store}", "--layers", "1-2"], "not a range of layers"),
        (["rm", "a/b", "{store}", "--yes"], "there is nothing of a/b"),
    ],
)
def test_mistakes_are_explained(
    arguments: list[str], reason: str, checkpoint: Path, stores: tuple[Path, Path]
) -> None:
    given = [each.format(checkpoint=checkpoint, store=stores[0]) for each in arguments]
    text = run(*given, status=2)
    assert reason in text
    assert "Traceback" not in text
