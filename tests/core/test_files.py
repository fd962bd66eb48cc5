from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shuntserve_core import peers
from shuntserve_core.errors import UserError
from shuntserve_core.files import file_name, open_log, own_dir, private_dir, write_private
from shuntserve_core.interfaces.launcher import NodeSpec
from shuntserve_core.tensorstore import StoreClient
from shuntserve_core.tensorstore.spec import TensorStoreError
from shuntserve_plugins.launchers.local import LocalLauncher

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
NOBODY = 65534


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_private_directories_are_made_and_tightened(tmp_path: Path) -> None:
    assert mode(private_dir(tmp_path / "a" / "b")) == 0o700
    (tmp_path / "loose").mkdir(mode=0o755)
    assert mode(private_dir(tmp_path / "loose")) == 0o700
    (tmp_path / "chosen").mkdir(mode=0o755)
    assert mode(own_dir(tmp_path / "chosen")) == 0o755
    (tmp_path / "to-chosen").symlink_to("chosen")
    assert own_dir(tmp_path / "to-chosen") == tmp_path / "to-chosen"


def test_links_files_and_open_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "nowhere").symlink_to("absent")
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name in ("link", "nowhere", "file", "open"):
        with pytest.raises(UserError, match=r"not a directory of this user's|not to be trusted"):
            private_dir(tmp_path / name)
    with pytest.raises(UserError, match="others can replace what is in"):
        private_dir(tmp_path / "open" / "inside")
    (tmp_path / "open").chmod(0o1777)
    assert mode(private_dir(tmp_path / "open" / "inside")) == 0o700
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "through").symlink_to("open")
    with pytest.raises(UserError, match="others can replace what is in"):
        own_dir(tmp_path / "through" / "inside")


@as_root
def test_somebody_elses_directories_are_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, NOBODY, NOBODY)
    for make in (private_dir, own_dir):
        with pytest.raises(UserError, match="belongs to user 65534"):
            make(theirs)
        with pytest.raises(UserError, match="others can replace"):
            make(theirs / "inside")


@as_root
async def test_a_directory_that_waits_for_us_stops_the_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o1777)
    waiting = tmp_path / f"shuntserve-{os.geteuid()}"
    waiting.mkdir(mode=0o777)
    os.chown(waiting, NOBODY, NOBODY)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    launcher = LocalLauncher()
    await launcher.open(tmp_path / "state")
    with pytest.raises(UserError, match="belongs to user 65534"):
        await launcher.launch(NodeSpec("solo#0", "solo", 1))
    assert not any(waiting.iterdir())


def test_an_agent_refuses_a_directory_of_others(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x" * 30)
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    argv = [sys.executable, "-m", "shuntserve_core.node", "--name", "n#0", "--gpus", "1"]
    argv += ["--run-dir", str(tmp_path / "run"), "--token-file", str(tmp_path / "token")]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "others may write to it" in ended.stderr


def test_logs_are_private_and_no_links(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.touch(mode=0o644)
    with open_log(log) as file:
        file.write(b"1")
    with open_log(log) as file:
        file.write(b"2")
    assert (log.read_bytes(), mode(log)) == (b"12", 0o600)
    (tmp_path / "link.log").symlink_to("created")
    os.link(log, tmp_path / "hard.log")
    os.mkfifo(tmp_path / "pipe.log")
    for name in ("link.log", "hard.log", "pipe.log"):
        with pytest.raises(UserError):
            open_log(tmp_path / name)
    assert not (tmp_path / "created").exists()


def test_private_files_do_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a.new").symlink_to("precious")
    write_private(tmp_path / "a", "secret")
    assert (tmp_path / "a").read_text() == "secret"
    assert (tmp_path / "precious").read_text() == "precious"
    assert mode(tmp_path / "a") == 0o600


def test_names_become_one_file_each() -> None:
    names = ["solo#0", "a/b", "a-b", "a b", "..", ".", "", "%2E", "../../etc/x", "a\0b", "ü"]
    made = [file_name(name) for name in names]
    assert len(set(made)) == len(names)
    assert not any("/" in name or "\0" in name or name in ("", ".", "..") for name in made)
    assert file_name("g6e.xlarge#0") == "g6e.xlarge#0"


def test_a_store_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        StoreClient(tmp_path / "s", timeout=5).close()
        monkeypatch.setattr(peers, "peer_user", lambda _: os.geteuid() + 1)
        with pytest.raises(TensorStoreError, match="another user listens there"):
            StoreClient(tmp_path / "s", timeout=5)
