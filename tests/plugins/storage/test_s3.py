from __future__ import annotations

from collections.abc import Callable

import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.store import StoreError
from shuntserve_core.testing.s3_servers import S3Server, free_ports
from shuntserve_core.testing.stores import LARGE_BYTES, WeightStoreContract, put, random_bytes
from shuntserve_core.weights.checksum import checksum
from shuntserve_plugins.storage.s3 import S3Store

Open = Callable[[str], S3Store]


class TestS3Store(WeightStoreContract):
    @pytest.fixture
    def store(self, server: S3Server, bucket: str, opened: Open) -> S3Store:
        return opened(server.url(bucket, "pre/fix"))


class Interrupted(Exception):
    pass


def interrupt_put(store: S3Store, data: bytes, after: int) -> None:
    """Put, but be stopped once `after` parts were sent."""
    sent: list[int] = []

    def stop(count: int) -> None:
        sent.append(count)
        if len(sent) == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        store.put("large", [memoryview(data)], checksum([data]), stop)


def test_goes_on_after_the_parts_that_are_there(
    server: S3Server, bucket: str, opened: Open
) -> None:
    store = opened(server.url(bucket) + "&part_mib=5")
    data = random_bytes(LARGE_BYTES)
    interrupt_put(store, data, after=3)
    assert list(store.list("")) == []
    assert put(store, "large", data) == LARGE_BYTES - 3 * (5 << 20)
    assert store.get("large")[0] == data
    assert store.discard_unfinished("") == 0


def test_parts_of_other_bytes_are_not_used(server: S3Server, bucket: str, opened: Open) -> None:
    store = opened(server.url(bucket) + "&part_mib=5")
    interrupt_put(store, random_bytes(LARGE_BYTES, seed=1), after=3)
    data = random_bytes(LARGE_BYTES, seed=2)
    assert put(store, "large", data) == LARGE_BYTES
    assert store.get("large")[0] == data


def test_an_upload_begun_for_other_bytes_with_the_same_beginning_is_put_right(
    server: S3Server, bucket: str, opened: Open
) -> None:
    store = opened(server.url(bucket) + "&part_mib=5")
    data = random_bytes(LARGE_BYTES)
    interrupt_put(store, data, after=2)
    changed = data[:-1] + bytes([data[-1] ^ 1])
    put(store, "large", changed)
    info = store.stat("large")
    assert info is not None
    assert info.checksum == checksum([changed])
    assert store.get("large")[0] == changed


def test_discards_unfinished_uploads(server: S3Server, bucket: str, opened: Open) -> None:
    store = opened(server.url(bucket) + "&part_mib=5")
    interrupt_put(store, random_bytes(LARGE_BYTES), after=1)
    assert store.discard_unfinished("") == 1
    assert store.discard_unfinished("") == 0


def test_missing_bucket_is_one_clear_line(server: S3Server, opened: Open) -> None:
    with pytest.raises(StoreError) as caught:
        opened(server.url("nowhere")).check()
    assert str(caught.value) == (
        f"s3://nowhere: there is no bucket 'nowhere' at {server.endpoint}; "
        "create it, or correct the store's URL"
    )


def test_wrong_credentials_are_one_clear_line(
    seaweed_server: S3Server, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweed_server.environment.items():
        monkeypatch.setenv(name, value)
    seaweed_server.client().create_bucket(Bucket="guarded")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = opened(seaweed_server.url("guarded"))
    with pytest.raises(StoreError, match=r"^s3://guarded: the server refuses these credentials"):
        store.check()
    with pytest.raises(StoreError, match=r"^s3://guarded/key: the server refuses these credent"):
        store.read_into("key", [memoryview(bytearray(1))])


def test_no_credentials_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(StoreError, match="no AWS credentials; set AWS_ACCESS_KEY_ID"):
        S3Store.from_url("s3://bucket?endpoint=http://127.0.0.1:1")


def test_unreachable_server_is_one_clear_line(
    opened: Open, monkeypatch: pytest.MonkeyPatch, seaweed_server: S3Server
) -> None:
    for name, value in seaweed_server.environment.items():
        monkeypatch.setenv(name, value)
    (port,) = free_ports(1)
    store = opened(f"s3://bucket?endpoint=http://127.0.0.1:{port}")
    with pytest.raises(StoreError, match="check the endpoint and the network") as caught:
        store.check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3:///prefix", "names no bucket"),
        ("s3://b?endpiont=x", "did you mean 'endpoint'"),
        ("s3://b?addressing=sideways", "addressing"),
        ("s3://b?part_mib=1", "part_mib"),
        ("s3://b?part_mib=many", "part_mib"),
    ],
)
def test_a_wrong_url_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        S3Store.from_url(url)


def test_addressing_styles(monkeypatch: pytest.MonkeyPatch, seaweed_server: S3Server) -> None:
    for name, value in seaweed_server.environment.items():
        monkeypatch.setenv(name, value)
    seaweed_server.client().create_bucket(Bucket="styles")
    port = seaweed_server.endpoint.rpartition(":")[2]
    # Names below localhost lead to this machine, so that a bucket can be part of the host's name.
    endpoint = f"http://localhost:{port}"
    path = S3Store.from_url(f"s3://styles?endpoint={endpoint}&addressing=path")
    put(path, "key", b"value")
    virtual = S3Store.from_url(f"s3://styles?endpoint={endpoint}&addressing=virtual")
    host = f"styles.localhost:{port}"
    assert host in virtual._reader.config["endpoint"]  # type: ignore[typeddict-item]
    assert host in virtual._client.generate_presigned_url(
        "get_object", Params={"Bucket": "styles", "Key": "key"}
    )
