"""Commands whose S3 server refuses, at once or in the middle: one line, what, where, remedy."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from shuntserve_core.cli import cli
from shuntserve_core.errors import UserError
from shuntserve_core.testing.s3_servers import S3Server
from shuntserve_plugins.storage.s3 import S3Store
from tests.core.weights.models import write_llama
from tests.plugins.storage.refusing import Refusal, RefusingServer, refusing

# A failed answer that botocore keeps in its exception holds a connection until it is collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Weights = Callable[..., str]
MODEL = "local/tiny"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "tiny")


@pytest.fixture
def refused() -> Weights:
    """Run `shuntserve weights ARGUMENTS`, which must end in one line; returns that."""

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(cli, ["weights", *map(str, arguments)])
        error = result.exception
        assert isinstance(error, UserError), (result.output, error)
        assert error.exit_code == 2
        text = str(error)
        assert "\n" not in text
        assert error.remedy, text
        return text

    return run


@pytest.fixture
def front() -> Iterator[RefusingServer]:
    with refusing() as server:
        yield server


RENEW = "get new ones (aws sso login, or a new session token) and try again"
ANSWERS = [
    (
        Refusal(400, "ExpiredToken"),
        r"expired \(ExpiredToken, at s3:{action} on bucket 'wts'\); get",
    ),
    (
        Refusal(403, "AccessDenied"),
        r"refuses s3:{action} on bucket 'wts' .*; allow s3:{action} the",
    ),
    (Refusal(403, "SignatureDoesNotMatch"), r"refuses these credentials .*; set AWS_ACCESS_KEY_ID"),
    (Refusal(401, page="no"), r"refuses these credentials .*; set AWS_ACCESS_KEY_ID"),
    (
        Refusal(404, "NoSuchBucket"),
        r"no bucket 'wts' at http://127.*; create it, or correct the st",
    ),
    (
        Refusal(403, "RequestTimeTooSkewed"),
        r"refuses requests of this machine's time; set the clock",
    ),
    (
        Refusal(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"}),
        r"is in region eu-west-1; add region=eu-west-1 to the store's URL",
    ),
    (
        Refusal(400, "AuthorizationHeaderMalformed", more="<Region>eu-north-1</Region>"),
        r"is in region eu-north-1; add region=eu-north-1 to the store's URL",
    ),
    (
        Refusal(307, "TemporaryRedirect"),
        r"no S3 server answers.* in a circle; check the endpoint's",
    ),
    (Refusal(200, page="<html>hello</html>"), r"no S3 server answers at .*; check the endpoint's"),
    (
        Refusal(204, page=""),
        r"no S3 server answers at .*HTTP 204.*; check the endpoint's host, port",
    ),
    (Refusal(404, page="<html>no</html>"), r"no S3 server answers at .*HTTP 404; check the endpoi"),
    (Refusal(507, "XMinioStorageFull"), r"XMinioStorageFull: no; free some space on the server"),
    (
        Refusal(400, "InvalidBucketName"),
        r"InvalidBucketName: no; correct the bucket in the store's",
    ),
]


@pytest.mark.parametrize(("refusal", "said"), ANSWERS, ids=[str(a[0].code) for a in ANSWERS])
def test_every_command_says_why_it_is_refused(
    front: RefusingServer, refused: Weights, tmp_path: Path, refusal: Refusal, said: str
) -> None:
    front.refusal = refusal
    store = f"s3://wts/q?endpoint={front.endpoint}"
    for arguments, action in (
        (("ls", store), "ListBucket"),
        (("pull", MODEL, store, tmp_path / "out"), "GetObject"),
    ):
        text = refused(*arguments)
        assert text.startswith("s3://wts/q"), text
        assert re.search(said.format(action=action), text), text


def test_slow_down_asks_for_patience_and_fewer_at_a_time(
    front: RefusingServer, monkeypatch: pytest.MonkeyPatch, refused: Weights
) -> None:
    monkeypatch.setattr("shuntserve_plugins.storage.s3.ATTEMPTS", 1)
    front.refusal = Refusal(503, "SlowDown")
    text = refused("ls", f"s3://wts?endpoint={front.endpoint}")
    assert text.endswith("SlowDown: no; try again later, with fewer --workers")
    front.refusal = Refusal(500, "InternalError")
    assert refused("ls", f"s3://wts?endpoint={front.endpoint}").endswith("no; try again later")


MIDDLE = [
    (
        "ExpiredToken",
        400,
        rf"expired \(ExpiredToken, at s3:PutObject on .*{re.escape(RENEW)}: what",
    ),
    (
        "AccessDenied",
        403,
        r"refuses s3:PutObject on bucket .*; allow s3:PutObject there, or use oth",
    ),
    (
        "InvalidAccessKeyId",
        403,
        r"refuses these credentials \(InvalidAccessKeyId, at s3:PutObject on",
    ),
    ("QuotaExceeded", 403, r"QuotaExceeded: no; free some space .*: what was uploaded is kept"),
]


@pytest.mark.parametrize(("code", "status", "said"), MIDDLE, ids=[case[0] for case in MIDDLE])
def test_a_refusal_in_the_middle_of_a_push_keeps_what_was_sent(
    seaweed_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    refused: Weights,
    checkpoint: Path,
    code: str,
    status: int,
    said: str,
) -> None:
    """And a second push, once it is let in again, ends well."""
    for name, value in seaweed_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"middle-{code.lower()}"
    client = seaweed_server.client()
    client.create_bucket(Bucket=bucket)
    with refusing(seaweed_server.endpoint) as front:
        front.refusal = Refusal(status, code, "PUT", after=6)
        store = f"s3://{bucket}/q?endpoint={front.endpoint}"
        text = refused("push", checkpoint, store, "--name", MODEL)
        assert text.startswith(f"s3://{bucket}/q/raw/local/tiny/"), text
        assert f"{bucket!r}" in text or "QuotaExceeded" in text
        assert re.search(said, text), text
        kept = {item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]}
        assert len(kept) > 3
        front.refusal = None
        push = ["weights", "push", str(checkpoint), store, "--name", MODEL]
        again = CliRunner().invoke(cli, push)
        assert again.exit_code == 0, again.output
        assert CliRunner().invoke(cli, ["weights", "verify", MODEL, store]).exit_code == 0


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("127.0.0.1:9000", r"has no scheme; write endpoint=https://127.0.0.1:9000, or http://"),
        ("localhost:9000", r"has no scheme; write endpoint=https://localhost:9000, or http://"),
        ("ftp://127.0.0.1", r"'ftp://127.0.0.1' is no address of a server; write http://HOST:PORT"),
        ("http://", r"'http://' is no address of a server; write http://HOST:PORT"),
        ("http://127.0.0.1:99999", r"is no address of a server; write http://HOST:PORT"),
        ("http://a b", r"is no address of a server; write http://HOST:PORT"),
        (
            "http://no-such-host.invalid",
            r"no usable answer from http://no-such-host.*; check the end",
        ),
        (
            "http://127.0.0.1:1",
            r"no usable answer from http://127.0.0.1:1.*; check the endpoint and",
        ),
        (
            "http://127.0.0.1:1/with/a/path",
            r"no usable answer from http://127.0.0.1:1.*; check the",
        ),
    ],
)
def test_endpoints_that_are_none(
    monkeypatch: pytest.MonkeyPatch, refused: Weights, endpoint: str, said: str
) -> None:
    monkeypatch.setattr("shuntserve_plugins.storage.s3.ATTEMPTS", 1)
    assert re.search(said, refused("ls", f"s3://wts/q?endpoint={endpoint}"))
    if "has no scheme" not in said:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert refused("ls", "s3://wts/q")


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.6\r\n", b""])
def test_a_port_where_no_http_is_spoken(
    monkeypatch: pytest.MonkeyPatch, refused: Weights, greeting: bytes
) -> None:
    monkeypatch.setattr("shuntserve_plugins.storage.s3.ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(greeting)

        thread = threading.Thread(target=greet)
        thread.start()
        try:
            for scheme in ("http", "https"):
                port = server.getsockname()[1]
                text = refused("ls", f"s3://wts/q?endpoint={scheme}://127.0.0.1:{port}")
                assert re.search(r"^s3://wts/q: no .*; check the endpoint", text), text
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_objects_that_may_not_be_removed_name_the_action(monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3Store.from_url("s3://wts/q?endpoint=http://127.0.0.1:1")
    failure = {"Key": "q/one", "Code": "AccessDenied", "Message": "no"}
    monkeypatch.setattr(store._client, "delete_objects", lambda **_: {"Errors": [failure]})
    said = r"^s3://wts/q/one: the server refuses s3:DeleteObject on bucket 'wts' .*; allow s3:Dele"
    with pytest.raises(UserError, match=said):
        store.delete(["one"])


def test_a_profile_that_is_not_there(monkeypatch: pytest.MonkeyPatch, refused: Weights) -> None:
    assert "correct profile=NAME" in refused("ls", "s3://wts/q?profile=nobody")


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, refused: Weights) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    assert "no AWS credentials; set AWS_ACCESS_KEY_ID" in refused("ls", "s3://wts/q")
