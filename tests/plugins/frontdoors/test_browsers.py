"""What pages of other origins may do; with a real browser in `test_chromium`."""

from __future__ import annotations

import hashlib

import pytest

from shuntserve_plugins.frontdoors.openai.keys import ApiKey
from tests.plugins.frontdoors.conftest import MODEL, Serve
from tests.plugins.frontdoors.http import request, send

GOOD = {"model": MODEL, "prompt": "fox", "max_tokens": 2}
PAGE = "http://page.example:3000"
KEY = "k7Qz-31xW-vv09-PLkt-aa25"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8000",
        "[::1]:8000",
        "localhost:1",
        "a.localhost",
        "10.1.2.3",
        "gpu.example",
        "GPU.example.:80",
    ],
)
async def test_own_names_and_addresses_are_served(serve: Serve, host: str) -> None:
    served = await serve(allowed_hosts=("gpu.example",))
    assert (await send(served.address, request(GOOD, Host=host))).status == 200
    same = request(GOOD, Host=host, Origin=f"http://{host}")
    assert (await send(served.address, same)).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", "::x"]
)
async def test_foreign_names_are_refused_without_keys(serve: Serve, host: str) -> None:
    served = await serve()
    for path, method in (("/v1/completions", "POST"), ("/v1/models", "GET"), ("/metrics", "GET")):
        answer = await send(served.address, request(GOOD, path, method, Host=host))
        assert (answer.status, answer.error["code"]) == (403, "foreign_host")
    health = await send(served.address, request(path="/health", method="GET", Host=host))
    assert health.status == 200
    assert not served.backend.submitted


@pytest.mark.parametrize("origin", [PAGE, "null", "http://localhost:3000", "https://127.0.0.1"])
async def test_foreign_pages_are_refused_without_keys(serve: Serve, origin: str) -> None:
    served = await serve()
    answer = await send(served.address, request(GOOD, Origin=origin))
    assert (answer.status, answer.error["code"]) == (403, "foreign_origin")
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert not served.backend.submitted


async def test_with_keys_any_name_will_do(serve: Serve) -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    served = await serve(api_keys=(ApiKey("a", sha256=digest),))
    sent = request(GOOD, Host="any.example", Origin=PAGE, Authorization=f"Bearer {KEY}")
    answer = await send(served.address, sent)
    assert answer.status == 200
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("good", [False, True])
async def test_every_answer_lets_its_page_read_it(serve: Serve, stream: bool, good: bool) -> None:
    served = await serve(cors_origins=(PAGE,))
    body = GOOD | {"stream": stream} | ({} if good else {"temperature": 9})
    answer = await send(served.address, request(body, Origin=PAGE))
    assert answer.status == (200 if good else 400)
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert "X-Request-Id" in answer.headers["Access-Control-Expose-Headers"]
    assert answer.headers["Vary"] == "Origin"


async def test_a_preflight_admits_what_clients_send(serve: Serve) -> None:
    served = await serve(cors_origins=(PAGE,))
    names = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"
    asked = {"Access_Control_Request_Headers": names, "Access_Control_Request_Method": "POST"}
    answer = await send(served.address, request(method="OPTIONS", Origin=PAGE, **asked))
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Headers"] == names
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    other = await send(served.address, request(method="OPTIONS", Origin="http://x", **asked))
    assert other.status == 405
    assert "Access-Control-Allow-Headers" not in other.headers
