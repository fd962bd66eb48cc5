"""What we lean on inside vLLM is as it was when we read it."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from attrs import evolve

from shuntserve_core.errors import UserError
from shuntserve_plugins.engines.vllm import symbols
from shuntserve_plugins.engines.vllm.symbols import (
    REQUIREMENT,
    SYMBOLS,
    VERSIONS,
    Sources,
    Symbol,
    installed_version,
    refuse_installed,
    refuse_version,
)

REPOSITORY = Path(__file__).parents[4]
OTHERS = "SHUNTSERVE_VLLM_SOURCES"
"""Folder with sources that are not installed, as `0.33/vllm/...` for each version."""


def _id(symbol: Symbol) -> str:
    return symbol.label


@pytest.fixture(scope="module")
def installed() -> Sources:
    return Sources.installed()


@pytest.mark.parametrize("symbol", SYMBOLS, ids=_id)
def test_it_is_what_it_was_in_this_version(symbol: Symbol, installed: Sources) -> None:
    version = str(installed_version()).rpartition(".")[0]
    assert installed.digest(symbol) == symbol.digest_in(version), f"used by {symbol.used}"


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_what_it_was_in_sources_elsewhere(version: str) -> None:
    folder = Path(os.environ.get(OTHERS, ""), version, "vllm")
    if OTHERS not in os.environ or not folder.is_dir():
        pytest.skip(f"{OTHERS} names no folder with {version}/vllm")
    sources = Sources(folder)
    differing = [s.label for s in SYMBOLS if sources.digest(s) != s.digest_in(version)]
    assert differing == []
    assert list(sources.changed()) == []


INTERFACE = {
    "config.ModelConfig",
    "config.VllmConfig",
    "distributed.get_pp_group",
    "engine.arg_utils.EngineArgs",
    "model_executor.layers.linear.LinearBase",
    "model_executor.layers.vocab_parallel_embedding.ParallelLMHead",
    "model_executor.layers.vocab_parallel_embedding.VocabParallelEmbedding",
    "platforms.current_platform",
    "tokenizers.cached_tokenizer_from_config",
    "v1.engine.EngineCoreEventType",
    "v1.engine.FinishReason",
    "v1.sample.logits_processor.BatchUpdate",  # of its `interface`
    "v1.sample.logits_processor.LogitsProcessor",
    "v1.sample.logits_processor.MoveDirectionality",
    "v1.structured_output.backend_types.StructuredOutputGrammar",
    "distributed.parallel_state.TensorMetadata",  # no class of its own: see _split_tensor_dict
}
"""Used as everybody uses it: its name is enough, whatever its source is."""


def test_whatever_is_imported_from_vllm_is_listed() -> None:
    """Modules, too: by at least one of their symbols."""
    listed = {f"{s.module}.{s.name.partition('.')[0]}" for s in SYMBOLS} | {
        s.module for s in SYMBOLS
    }
    imported = {
        f"{node.module}.{name.name}".removeprefix("vllm.")
        for file in symbols.TABLE.parent.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "vllm"
        for name in node.names
    }
    assert imported - listed - INTERFACE == set()
    assert imported >= INTERFACE  # nothing is left here that is not used any more


def test_what_ranks_send_is_listed() -> None:
    payload = pytest.importorskip("shuntserve_plugins.engines.vllm.payload")
    ours = {"Taken", "TensorMetadata"}
    kinds = {*payload.RECORDS, *payload.ENUMERATIONS}
    assert kinds - {symbol.name for symbol in SYMBOLS} == ours


def test_what_ranks_are_called_for_is_listed() -> None:
    rank = pytest.importorskip("shuntserve_plugins.engines.vllm.rank")
    theirs = rank.CALLS - {rank.PREPARE, rank.STAND_BY, rank.OWN}
    listed = {symbol.name.rpartition(".")[2] for symbol in SYMBOLS}
    of_executor = {
        "get_kv_cache_spec": "get_kv_cache_specs",
        "get_supported_tasks": "supported_tasks",
    }
    assert {of_executor.get(one, one) for one in theirs} - listed == {"update_max_model_len"}


def _vllm(folder: Path, body: str) -> Sources:
    """A package with one class of ours, as far as digests go."""
    file = folder / "v1" / "core.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(body)
    return Sources(folder)


STEP = Symbol("v1.core", "Core.step", "a test", {})


def test_a_digest_is_of_code_alone(tmp_path: Path) -> None:
    body = 'class Core:\n    def step(self):\n        """{}"""\n        return {}  # {}\n'
    first = _vllm(tmp_path / "a", body.format("One.", 1, "one")).digest(STEP)
    reworded = _vllm(tmp_path / "b", body.format("Two.", 1, "two")).digest(STEP)
    changed = _vllm(tmp_path / "c", body.format("One.", 2, "one")).digest(STEP)
    assert first == reworded != changed


def test_a_digest_is_the_same_for_every_python(tmp_path: Path) -> None:
    """Recorded once: from 3.12 on functions have type parameters, from 3.13 no empty fields."""
    body = "class Core:\n    def step(self, x: int, *, y='s') -> str:\n        return f'{x:>{y}}'\n"
    assert _vllm(tmp_path, body).digest(STEP) == "e32feaa7f5d08a83"


def test_what_is_gone_is_named(tmp_path: Path) -> None:
    sources = _vllm(tmp_path, "class Core:\n    def run(self): ...\n")
    with pytest.raises(LookupError, match=r"vllm\.v1\.core\.Core\.step is not there any more"):
        sources.digest(STEP)
    with pytest.raises(LookupError, match=r"v1/gone\.py"):
        sources.digest(evolve(STEP, module="v1.gone"))


def test_a_digest_holds_until_there_is_another() -> None:
    symbol = evolve(STEP, since={"0.32": "a"})
    assert [symbol.digest_in(version) for version in VERSIONS] == ["a", "a"]
    symbol = evolve(STEP, since={"0.32": "a", "0.33": "b"})
    assert [symbol.digest_in(version) for version in VERSIONS] == ["a", "b"]
    assert evolve(STEP, since={"0.33": "b"}).digest_in("0.32") is None


def test_installers_are_given_the_same_range() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert REQUIREMENT in project["optional-dependencies"]["vllm"]
    after = f"0.{int(VERSIONS[-1].partition('.')[2]) + 1}"
    assert f"vllm>={VERSIONS[0]},<{after}" == REQUIREMENT


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.33.0"])
def test_versions_that_were_read(version: str) -> None:
    refuse_version(version)


@pytest.mark.parametrize("version", ["0.31.0", "0.34.0", "0.3.2", "1.0.0"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(UserError, match=f"vLLM {version} is not known .*'vllm>=0.32,<0.34'"):
        refuse_version(version)


def test_a_changed_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refuse_installed()
    monkeypatch.setattr(symbols, "SYMBOLS", [evolve(STEP, since={"0.32": "a"})])
    monkeypatch.setattr(Sources, "installed", lambda: _vllm(tmp_path, "class Core: ...\n"))
    with pytest.raises(UserError, match=r"vLLM 0.3\d.\d is not as it was read: .*Core.step") as no:
        refuse_installed()
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("module", ["worker", "template"])
def test_no_worker_starts_with_an_unknown_one(module: str, tmp_path: Path) -> None:
    """Before anything of vLLM is imported, and with one line."""
    metadata = tmp_path / "vllm-0.99.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.99.0\n")
    code = f"import shuntserve_plugins.engines.vllm.{module}; from sys import modules"
    if module == "worker":
        code = "from shuntserve_plugins.engines.vllm.worker import _refuse_installed as f; f()"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 1
    assert "vLLM 0.99.0 is not known to this engine" in ran.stderr.splitlines()[-1]
    assert len(ran.stderr.splitlines()) == 1 or module == "template"


@pytest.fixture(scope="module")
def vllm_next() -> ModuleType:
    path = str(REPOSITORY / "tools" / "vllm-next")
    loader = importlib.machinery.SourceFileLoader("vllm_next", path)
    spec = importlib.util.spec_from_loader("vllm_next", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_table_is_as_the_tool_writes_it(vllm_next: ModuleType) -> None:
    assert vllm_next.table_text(SYMBOLS) == symbols.TABLE.read_text()


def test_the_tool_records_what_is_new_and_shows_what_changed(
    vllm_next: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = _vllm(tmp_path / "a", "class Core:\n    def step(self): return 1\n")
    theirs = _vllm(tmp_path / "b", "class Core:\n    def step(self): return 2\n")
    first = vllm_next._accepted(STEP, ours, "0.32")
    assert list(first.since) == ["0.32"]
    assert vllm_next._accepted(first, ours, "0.33") == first
    second = vllm_next._accepted(first, theirs, "0.33")
    assert second.since == {"0.32": ours.digest(STEP), "0.33": theirs.digest(STEP)}
    for module in (symbols, vllm_next):
        monkeypatch.setattr(module, "SYMBOLS", [first])
    monkeypatch.setattr(Sources, "installed", lambda: ours)
    vllm_next.show(theirs)
    said = capsys.readouterr().out
    assert "==== vllm.v1.core.Core.step\n==== used by a test\n" in said
    assert "+    def step(self): return 2" in said or "+def step(self): return 2" in said
    assert "1 symbols: 1 changed, 0 gone; unread: 1" in said


def test_the_version_that_tests_run_with() -> None:
    assert importlib.metadata.version("vllm").partition("+")[0] == "0.32.0"
