"""A hub that is out of reach, or refuses: one line, within seconds, and nobody else's lines."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shuntserve_core import hub
from shuntserve_core.config.model_facts import facts_of
from shuntserve_core.errors import UserError
from shuntserve_core.hub import Asked, HubError, fetch
from shuntserve_core.weights.sources.hub import download

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "model-1.safetensors": b"1" * 100, "model-2.safetensors": b"2" * 100}
Answer = tuple[int, dict[str, str]]


class FakeHub:
    """A repository `org/tiny`; what is asked for files or for facts can be refused."""

    def __init__(self) -> None:
        self.facts: Answer | None = None
        self.file: Answer | None = None
        self.silent = ""
        """Of paths that contain this, nothing is ever heard."""
        self.enough = threading.Event()
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                outer.answer(self)

            def do_GET(self) -> None:
                outer.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        self.asked.append(path)
        self.tokens.add(handler.headers.get("Authorization"))
        if self.silent and self.silent in path:
            self.enough.wait(60)
            return
        refused = self.file if "/resolve/" in path else self.facts
        body, headers = b"", {}
        if refused:
            status, headers = refused
        else:
            status, body = self._content(path)
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hash(path)}"'}
        handler.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(key, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body)

    def _content(self, path: str) -> tuple[int, bytes]:
        if "/tree/" in path:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": name}
                for name, data in FILES.items()
            ]
            return 200, json.dumps(tree).encode()
        if path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in FILES]
            facts = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings}
            return 200, json.dumps(facts).encode()
        data = FILES.get(path.rpartition("/")[2])
        return (404, b"") if data is None else (200, data)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy, no token, no cache of this machine's."""
    for name in os.environ:
        if name.lower().endswith("_proxy") or name.startswith(("HF_", "HUGGING")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.enough.set()
        server.server.shutdown()
        server.server.server_close()
        thread.join()


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def refused(url: str, **options: Any) -> HubError:
    with pytest.raises(HubError) as caught:
        fetch(Asked("org/tiny", options.pop("revision", None), endpoint=url), **options)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return caught.value


def test_files_come_once_and_serve_without_the_hub_afterwards(fake: FakeHub, nobody: str) -> None:
    folder = fetch(Asked("org/tiny", patterns=("*.safetensors",), endpoint=fake.url))
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)[1:]
    assert folder.name == COMMIT
    fake.asked.clear()
    again = fetch(Asked("org/tiny", patterns=("*.safetensors",), endpoint=nobody))
    assert again == folder
    assert fake.asked == []


REFUSALS = [
    (401, {"X-Error-Code": "GatedRepo"}, "gated", r"accept its licence at .*/org/tiny, and set HF"),
    (403, {"X-Error-Code": "GatedRepo"}, "gated", r"accept its licence at .*/org/tiny, and set HF"),
    (403, {}, "gated", r"HTTP 403.*accept its licence at .*/org/tiny, and set HF_TOKEN"),
    (404, {"X-Error-Code": "RepoNotFound"}, "missing", r"no such repository.*correct the name, or"),
    (404, {"X-Error-Code": "RevisionNotFound"}, "revision", r"no revision 'v9'; name a branch, ta"),
    (401, {}, "missing", r"not there for everybody.*set HF_TOKEN to a token that may read it"),
    (
        401,
        {"X-Error-Message": "Invalid credentials in Authorization header"},
        "token",
        r"refuses the token \(HTTP 401\).*; renew HF_TOKEN",
    ),
    (429, {"Retry-After": "300"}, "rate", r"HTTP 429\), for 300 s; try again later, or set HF_TOK"),
    (503, {}, "server", r"has failed \(HTTP 503\); try again later"),
]


@pytest.mark.parametrize(("status", "headers", "kind", "said"), REFUSALS)
def test_a_refusal_is_named_at_the_first_answer(
    fake: FakeHub, status: int, headers: dict[str, str], kind: str, said: str
) -> None:
    fake.facts = (status, headers)
    error = refused(fake.url, revision="v9")
    assert error.kind == kind
    assert re.search(said, str(error)), error
    assert len(fake.asked) == 1  # the first answer is enough


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [(403, {"X-Error-Code": "GatedRepo"}, "gated"), (401, {"X-Error-Code": "GatedRepo"}, "gated")],
)
def test_gated_files_of_a_repository_that_all_may_see(
    fake: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    headers: dict[str, str],
    kind: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fake.file = (status, headers)
    error = refused(fake.url)
    assert error.kind == kind
    assert "the account of HF_TOKEN has no access" in error.message
    assert "hf_secret" not in str(error)
    assert fake.tokens == {"Bearer hf_secret"}


@pytest.mark.parametrize(("status", "kind"), [(429, "rate"), (503, "server")])
def test_files_that_are_refused_for_now_are_not_waited_for_long(
    fake: FakeHub, status: int, kind: str
) -> None:
    """The client itself would wait for as long as it is told, five times."""
    fake.file = (status, {"Retry-After": "300"})
    error = refused(fake.url, patience=4.0)
    assert error.kind == kind
    assert error.message.endswith(f"goes on answering HTTP {status}")
    assert "try again later" in error.remedy


@pytest.mark.parametrize("silent", ["/api/", "/resolve/"])
def test_a_server_that_says_nothing(fake: FakeHub, silent: str) -> None:
    fake.silent = silent
    error = refused(fake.url, patience=2.0, stall=2.0)
    assert error.kind == "unreachable"
    assert re.search(r"127\.0\.0\.1:\d+ (does not answer|cannot be reached)", error.message)
    assert "check the network, the proxy and HF_ENDPOINT" in error.remedy


def test_a_hub_that_is_not_there(nobody: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^org/tiny: cannot be fetched.*cannot be reached") as said:
        download("org/tiny", endpoint=nobody)
    assert "name a folder with the checkpoint" in said.value.remedy
    assert "\n" not in str(said.value)
    assert capfd.readouterr() == ("", "")


def test_a_proxy_that_is_not_there(
    fake: FakeHub, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", nobody)
    monkeypatch.setenv("http_proxy", nobody)
    error = refused(fake.url)
    assert error.kind == "unreachable"
    assert "check the network, the proxy and HF_ENDPOINT" in error.remedy
    assert fake.asked == []


def test_a_name_that_is_not_resolved() -> None:
    error = refused("http://no-such-host.invalid")
    assert error.kind == "unreachable"
    assert error.message.startswith("no-such-host.invalid cannot be reached")


def test_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No timeout of a socket helps against it: the child is ended."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket, time\nsocket.getaddrinfo = lambda *_, **__: time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    error = refused("http://hub.example", patience=2.0)
    assert error.message == "hub.example does not answer: nothing came for 2 s"


def test_an_endpoint_that_is_something_else(fake: FakeHub) -> None:
    fake.facts = (200, {"Content-Type": "text/html"})
    error = refused(fake.url)
    assert error.kind == "strange"
    assert "does not answer as the hub does" in error.message
    assert "check HF_ENDPOINT" in error.remedy


def test_who_is_offline_by_choice_is_told(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = refused(fake.url)
    assert (error.kind, fake.asked) == ("offline", [])
    assert str(error).endswith("not in the hub's cache; unset HF_HUB_OFFLINE")


def test_a_cache_that_lacks_some_files(fake: FakeHub, nobody: str) -> None:
    folder = fetch(Asked("org/tiny", endpoint=fake.url))
    (folder / "model-2.safetensors").unlink()
    error = refused(nobody)
    assert error.kind == "incomplete"
    assert "model-2.safetensors" in error.message
    assert error.remedy == "try again where the hub is in reach"


def test_a_cache_that_cannot_be_written(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file" / "cache"))
    error = refused(fake.url)
    assert error.kind == "disk"
    assert f"cannot write {tmp_path}/file" in error.message
    assert "set HF_HOME to a place that this user may write to" in error.remedy


def test_a_mirror_that_is_not_there_in_a_configuration(
    nobody: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", nobody)
    with pytest.raises(UserError, match=r'cannot fetch config\.json of "org/tiny"') as caught:
        facts_of("org/tiny", base=tmp_path)
    assert "give path = a folder with its config.json" in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_the_clients_package_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError('none')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert refused("http://127.0.0.1:1").remedy == "pip install 'shuntserve[hub]'"


def test_a_child_that_dies_is_one_line_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text("import os\nos._exit(9)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "ended without a word" in refused("http://127.0.0.1:1").message


def test_a_push_prints_one_line(nobody: str, tmp_path: Path) -> None:
    command = ("-m", "shuntserve_core.cli", "weights", "push", "org/tiny", str(tmp_path / "store"))
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "HF_ENDPOINT": nobody},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("org/tiny: cannot be fetched from the hub: 127.0.0.1")


def test_the_bound_is_seconds() -> None:
    assert hub.PATIENCE <= 10
    assert hub.STALL <= 60
