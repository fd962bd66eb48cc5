"""A home that cannot be written and a disk that is full are one line with the way out."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from shuntserve_core import cli
from shuntserve_core.bench.report import write_csv
from shuntserve_core.config.loader import Config
from shuntserve_core.errors import UserError
from shuntserve_core.files import open_log, own_dir, write_private
from shuntserve_core.runtime.places import default_state_root, state_dir_of
from shuntserve_core.runtime.serve import only_one
from tests.core.cli.conftest import Shuntserve
from tests.core.runtime.clusters import tiny_config


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def without_state_dir(config: Config) -> Config:
    from attrs import evolve

    document = config.document
    return evolve(config, document=evolve(document, serve=evolve(document.serve, state_dir=None)))


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    config = without_state_dir(tiny_config(tmp_path))
    for home in ("/proc", "/dev/null"):
        monkeypatch.setenv("HOME", home)
        said = f"^{home}/.local/state/shuntserve/.*cannot write: .*serve.state_dir, XDG_STATE_HOME"
        with pytest.raises(UserError, match=said), only_one(state_dir_of(config)):
            pass


def test_no_home_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(UserError, match="no home directory; set HOME or XDG_STATE_HOME"):
        default_state_root()


def test_a_full_disk_keeps_what_was_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "agent.json"
    write_private(file, "old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(UserError, match=f"^{file}: cannot write: no space left.*; free some"):
            write_private(file, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["agent.json"]
    assert file.read_text() == "old"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        with pytest.raises(UserError, match=r"cannot write: no space left.*; free some space"):
            own_dir(tmp_path / "state")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(
            UserError, match=r"no log can be kept: No space left.*; free some space"
        ):
            open_log(tmp_path / "agent.log")


def test_results_of_a_load_are_not_lost_in_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none/out.csv: cannot write: no such file.*; choose a pl"):
        write_csv(tmp_path / "none" / "out.csv", ())


def test_bench_looks_at_its_output_before_the_load(shuntserve: Shuntserve, tmp_path: Path) -> None:
    out = tmp_path / "none" / "out.csv"
    done = shuntserve("bench", "http://127.0.0.1:1", "--output", out)
    assert done.code == 2
    assert done.err.startswith(f"{out}: cannot write: no such file or directory; choose a place")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(("number", "caught"), [(errno.ENOSPC, True), (errno.ENOTCONN, False)])
def test_a_full_disk_is_one_line_wherever_it_is_met(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    *,
    caught: bool,
) -> None:
    def fails(**_: Any) -> None:
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr(cli.cli, "main", fails)
    with pytest.raises(SystemExit if caught else OSError):
        cli.main()
    said = capsys.readouterr().err
    assert (said.startswith("/some/file: cannot write: no space left on device; free")) == caught
