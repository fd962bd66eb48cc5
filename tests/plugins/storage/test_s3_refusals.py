"""What is said of credentials that end or do not suffice, of regions, and of endpoints."""

from __future__ import annotations

import pytest
from botocore.stub import Stubber
from obstore.exceptions import GenericError, PermissionDeniedError

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.store import StoreError
from shuntserve_plugins.storage.s3 import S3Store
from shuntserve_plugins.storage.s3_errors import clear_errors


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> S3Store:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    return S3Store.from_url("s3://wts/q?endpoint=http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "ExpiredToken",
            r"expired \(ExpiredToken, at s3:PutObject on bucket 'wts'\); get new ones",
        ),
        ("AccessDenied", r"refuses s3:PutObject on bucket 'wts' \(AccessDenied\); allow s3:PutOb"),
        (
            "InvalidAccessKeyId",
            r"refuses these credentials \(InvalidA.*'wts'\); set AWS_ACCESS_KEY",
        ),
        ("RequestTimeTooSkewed", r"this machine's time; set the clock"),
    ],
)
def test_a_refusal_in_the_middle_of_a_push_names_action_and_bucket(
    store: S3Store, code: str, said: str
) -> None:
    with Stubber(store._client) as stub:
        stub.add_response("put_object", {})
        stub.add_client_error("put_object", code, http_status_code=403)
        store.put("first", [memoryview(b"x")], "xxh3-128:0")
        with pytest.raises(StoreError, match=rf"^s3://wts/q/second: the .*{said}") as caught:
            store.put("second", [memoryview(b"x")], "xxh3-128:0")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("meta", "service"),
    [
        ({"HTTPHeaders": {"x-amz-bucket-region": "eu-north-1"}}, {}),
        ({}, {"Region": "eu-north-1"}),
    ],
)
def test_a_redirect_names_the_region_that_the_answer_names(
    store: S3Store, meta: dict[str, object], service: dict[str, str]
) -> None:
    with Stubber(store._client) as stub:
        stub.add_client_error(
            "list_objects_v2",
            "AuthorizationHeaderMalformed",
            http_status_code=400,
            service_error_meta=service,
            response_meta=meta,
        )
        said = r"'wts' is in region eu-north-1; add region=eu-north-1 to the store's URL: s3://wts/"
        with pytest.raises(StoreError, match=said):
            store.check()


def test_a_reader_that_is_redirected_asks_where_the_bucket_is() -> None:
    redirect = GenericError("Received redirect without LOCATION, this normally indicates ...")
    with (
        pytest.raises(StoreError, match="is in region eu-north-1; add region=eu-north-1"),
        clear_errors("wts", key="k", region_of=lambda: "eu-north-1"),
    ):
        raise redirect
    with (
        pytest.raises(StoreError, match="is in another region; add region=REGION"),
        clear_errors("wts", key="k"),
    ):
        raise redirect


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<Code>ExpiredToken</Code>", r"have expired .*s3:GetObject on bucket 'wts'.*get new ones"),
        ("<Code>AccessDenied</Code>", r"refuses s3:GetObject on bucket 'wts'.*allow s3:GetObject"),
        ("403", r"refuses these credentials \(at s3:GetObject on bucket 'wts'\); set AWS_"),
    ],
)
def test_a_reader_that_is_refused_says_what_for(text: str, said: str) -> None:
    with pytest.raises(StoreError, match=said), clear_errors("wts", key="k"):
        raise PermissionDeniedError(text)


def test_an_endpoint_without_a_scheme_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    remedy = r"has no scheme; write endpoint=https://127.0.0.1:9000, or http://"
    with pytest.raises(UserError, match=remedy):
        S3Store.from_url("s3://wts/q?endpoint=127.0.0.1:9000")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(UserError, match=r"Invalid endpoint.*; endpoints begin with http://"):
        S3Store.from_url("s3://wts/q")
