"""Keys, drain, logs, metrics, posture: what an operator sees."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path

import openai
import pytest
import uvloop

from shuntserve_core.errors import UserError
from shuntserve_core.testing.frontdoors import FrontDoorContract, ScriptedBackend
from shuntserve_core.testing.models import write_tokenizer
from shuntserve_plugins.frontdoors.openai.door import OpenAIFrontDoor
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.keys import ApiKey, KeyUse, Stay
from shuntserve_plugins.frontdoors.openai.limits import Limits
from tests.plugins.frontdoors.conftest import MODEL, Serve
from tests.plugins.frontdoors.http import hang_up, read_answer, request, send, until

KEY = "k7Qz-31xW-vv09-PLkt-aa25"
OTHER = "another-key-8812-zxcv-qwer"
GOOD = {"model": MODEL, "prompt": "the fox", "max_tokens": 2}


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class TestContract(FrontDoorContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = str(write_tokenizer(tmp_path))

    def make_door(self) -> OpenAIFrontDoor:
        return OpenAIFrontDoor(port=0)

    def model_dir(self) -> str:
        return self.folder


async def test_without_the_right_key_nothing_but_health_is_open(serve: Serve) -> None:
    served = await serve(api_keys=(ApiKey("team", sha256=hashed(KEY)),))
    for path, method in (("/v1/completions", "POST"), ("/v1/models", "GET"), ("/metrics", "GET")):
        for headers in ({}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Basic {KEY}"}):
            answer = await send(served.address, request(GOOD, path, method, **headers))
            assert answer.status == 401
            assert answer.error["type"] == "authentication_error"
            assert KEY not in answer.body.decode()
        answer = await send(
            served.address, request(GOOD, path, method, Authorization=f"Bearer {KEY}")
        )
        assert answer.status == 200
    for path in ("/health", "/ready"):
        assert (await send(served.address, request(path=path, method="GET"))).status == 200
    async with served.client(KEY) as client:
        assert (await client.completions.create(**GOOD)).choices


@pytest.mark.parametrize("shared", [False, True])
async def test_each_key_has_cached_prompts_of_its_own_unless_they_are_shared(
    serve: Serve, shared: bool
) -> None:
    keys = (ApiKey("a", sha256=hashed(KEY)), ApiKey("b", sha256=hashed(OTHER)))
    served = await serve(api_keys=keys, share_prefixes=shared)
    for key in (KEY, OTHER, KEY):
        async with served.client(key) as client:
            await client.completions.create(**GOOD, n=2)
    one, again, other, other_again, third, _ = (j.cache_salt for j in served.backend.submitted)
    assert one == again == third
    assert other == other_again
    assert (one == other == "") if shared else one and other and one != other
    assert served.backend.submitted[0].request().cache_salt == one


async def test_without_keys_all_share_cached_prompts(serve: Serve) -> None:
    served = await serve()
    async with served.client() as client:
        await client.completions.create(**GOOD)
    assert [journal.cache_salt for journal in served.backend.submitted] == [""]


async def test_keys_from_environment_and_file(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FRONT_KEY", KEY)
    (tmp_path / "key").write_text(f"{OTHER}\n")
    keys = (ApiKey("a", env="FRONT_KEY"), ApiKey("b", file=str(tmp_path / "key")))
    served = await serve(api_keys=keys)
    for key in (KEY, OTHER):
        async with served.client(key) as client:
            await client.models.retrieve(MODEL)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (ApiKey("a"), "exactly one"),
        (ApiKey("a", sha256=hashed(KEY), env="X"), "exactly one"),
        (ApiKey("a", sha256="abc"), "64 hexadecimal digits"),
        (ApiKey("a", sha256=hashed("sk-1234")), "placeholder"),
        (ApiKey("a", env="SHUNTSERVE_NO_SUCH_KEY"), "is empty"),
        (ApiKey("a", file="/no/such/file"), "cannot read"),
        (ApiKey("a", env="WEAK"), "too easy to guess"),
    ],
)
async def test_bad_keys_stop_the_start(
    serve: Serve, key: ApiKey, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEAK", "abababababababababababababababab")
    with pytest.raises(UserError, match=words):
        await serve(api_keys=(key,))


async def test_each_key_has_its_own_limits(serve: Serve) -> None:
    one = ApiKey("one", sha256=hashed(KEY), max_in_flight=1, max_tokens=50)
    served = await serve(
        ScriptedBackend(interval=0.02), api_keys=(one, ApiKey("two", sha256=hashed(OTHER)))
    )
    async with served.client(KEY) as first, served.client(OTHER) as second:
        stream = await first.completions.create(
            model=MODEL, prompt="fox", max_tokens=40, stream=True
        )
        with pytest.raises(openai.RateLimitError) as caught:
            await first.completions.create(**GOOD)
        assert caught.value.code == "too_many_in_flight"
        assert caught.value.response.headers["Retry-After"] == "1"
        await second.completions.create(**GOOD)
        async for _ in stream:
            pass
        await first.completions.create(**GOOD)
        with pytest.raises(openai.BadRequestError, match="at most 50 tokens"):
            await first.completions.create(model=MODEL, prompt="fox", max_tokens=51)
        await first.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "fox"}]
        )
    assert served.backend.submitted[-1].sampling.max_tokens == 50


def test_requests_per_minute_fill_up_steadily() -> None:
    use = KeyUse(ApiKey("a", requests_per_minute=60), b"")
    for _ in range(60):
        use.arrive(100.0)
    with pytest.raises(ApiError) as caught:
        use.arrive(100.5)
    assert caught.value.headers["Retry-After"] == "1"
    use.arrive(101.0)
    with pytest.raises(ApiError):
        use.arrive(101.0)


def test_answers_count_as_what_they_are() -> None:
    use = KeyUse(ApiKey("a", requests_per_minute=60, max_in_flight=10), b"")
    with pytest.raises(ApiError) as caught:
        use.enter(0.0, Stay(11))
    assert caught.value.status == 400
    stay = Stay(8)
    use.arrive(0.0)
    use.enter(0.0, stay)
    with pytest.raises(ApiError) as caught:
        use.enter(0.0, Stay(3))
    assert (caught.value.status, caught.value.code) == (429, "too_many_in_flight")
    use.leave(stay)
    assert use.in_flight == 0
    for _ in range(52):
        use.arrive(0.0)
    with pytest.raises(ApiError) as caught:
        use.arrive(0.0)
    assert caught.value.code == "rate_limit_exceeded"


def test_tokens_per_minute() -> None:
    use = KeyUse(ApiKey("a", tokens_per_minute=600), b"")
    with pytest.raises(ApiError) as caught:
        use.enter(0.0, Stay(1, 600), prompt_tokens=1)
    assert caught.value.status == 400
    made = 0
    asked, open_end = Stay(1, 300, lambda: 100), Stay(1, 0, lambda: made)
    use.enter(0.0, asked, prompt_tokens=100)
    use.enter(0.0, open_end, prompt_tokens=100)
    with pytest.raises(ApiError) as caught:  # 100 are left
        use.enter(0.0, Stay(1, 100), prompt_tokens=10)
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "1")
    use.leave(asked)  # it used 200 less than it asked for
    made = 250
    with pytest.raises(ApiError):  # 300, of which 250 are being used
        use.enter(0.0, Stay(1, 100))
    use.enter(0.0, Stay(1, 50))
    use.leave(open_end)
    with pytest.raises(ApiError):
        use.enter(0.0, Stay(1))
    use.enter(10.0, Stay(1, 100))


async def test_refused_requests_and_counted_texts_are_requests_too(serve: Serve) -> None:
    key = ApiKey("one", sha256=hashed(KEY), requests_per_minute=4, max_tokens=30)
    served = await serve(api_keys=(key,))
    headers = {"Authorization": f"Bearer {KEY}"}
    for path, body, status in (
        ("/tokenize", {"prompt": "fox"}, 200),
        ("/detokenize", {"tokens": [5]}, 200),
        ("/v1/completions", GOOD | {"n": 4, "max_tokens": 8}, 400),  # 32 tokens in all
        ("/v1/completions", GOOD | {"nonsense": 1}, 400),
        ("/v1/completions", GOOD, 429),
        ("/tokenize", {"prompt": "fox"}, 429),
    ):
        answer = await send(served.address, request(body, path, **headers))
        assert answer.status == status, path


async def test_drain_finishes_what_is_under_way(serve: Serve) -> None:
    backend = ScriptedBackend(interval=0.02)
    served = await serve(backend)
    async with served.client() as client:
        stream = await client.completions.create(
            model=MODEL,
            prompt="fox",
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
        draining = asyncio.create_task(served.door.drain(20.0))
        await asyncio.sleep(0.05)
        ready = await send(served.address, request(path="/ready", method="GET"))
        assert (ready.status, json.loads(ready.body)) == (503, {"status": "draining"})
        refused = await send(served.address, request(GOOD))
        assert (refused.status, refused.error["code"]) == (503, "shutting_down")
        assert "Retry-After" in refused.headers
        usages = [chunk.usage async for chunk in stream]
        await draining
    assert usages[-1] is not None
    assert usages[-1].completion_tokens == 30
    assert not backend.running


async def test_what_is_not_finished_at_the_deadline_gets_an_error_event(serve: Serve) -> None:
    backend = ScriptedBackend(interval=0.05)
    served = await serve(backend)
    reader, writer = await asyncio.open_connection(*served.address)
    writer.write(request(GOOD | {"max_tokens": 4000, "stream": True}))
    other_reader, other_writer = await asyncio.open_connection(*served.address)
    other_writer.write(request(GOOD | {"max_tokens": 4000}))
    await until(lambda: len(backend.running) == 2 and backend.steps > 2)
    await served.door.drain(0.1)
    streamed, answered = await read_answer(reader), await read_answer(other_reader)
    assert b'"code":"shutting_down"' in streamed.body.splitlines()[-2]
    assert b"[DONE]" not in streamed.body
    assert (answered.status, answered.error["code"]) == (503, "shutting_down")
    assert await reader.read() == b""
    assert not backend.running
    writer.close()
    other_writer.close()
    await asyncio.gather(writer.wait_closed(), other_writer.wait_closed())


async def test_ready_follows_the_cluster(serve: Serve) -> None:
    backend = ScriptedBackend(ready=False)
    served = await serve(backend)
    answer = await send(served.address, request(path="/ready", method="GET"))
    assert (answer.status, json.loads(answer.body)) == (503, {"status": "starting"})
    backend.ready = True
    assert (await send(served.address, request(path="/ready", method="GET"))).status == 200


async def test_the_access_log_tells_everything_but_text(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    served = await serve(access_log=str(path), api_keys=(ApiKey("team", sha256=hashed(KEY)),))
    secret = "SECRETWORD"
    body = GOOD | {"prompt": secret, "user": secret, "stop": secret}
    headers = {"X_Request_Id": "client-1", "Authorization": f"Bearer {KEY}"}
    await send(served.address, request(body, **headers))
    await send(served.address, request(body | {secret: 1}, **headers))
    await send(served.address, request(body, path=f"/{secret}", **headers))
    text = path.read_text()
    first, second, third = (json.loads(line) for line in text.splitlines())
    assert secret not in text
    assert KEY not in text
    assert first["request_id"] == "client-1"
    assert (first["status"], first["key"], first["endpoint"]) == (200, "team", "/v1/completions")
    assert (first["prompt_tokens"] > 0, first["completion_tokens"]) == (True, 2)
    assert first["first_token_ms"] <= first["duration_ms"]
    assert (second["status"], second["error"]) == (400, "unknown_parameter")
    assert (third["status"], third["endpoint"]) == (404, "unknown")


async def test_request_ids(serve: Serve) -> None:
    served = await serve()
    for body in (GOOD, GOOD | {"stream": True}, {}):
        answer = await send(served.address, request(body, X_Request_Id="abc-1"))
        assert answer.headers["X-Request-Id"] == "abc-1"
        answer = await send(served.address, request(body, X_Request_Id="é" * 3))
        assert answer.headers["X-Request-Id"].isalnum()


async def test_metrics_count_exactly(serve: Serve) -> None:
    served = await serve()
    for stream in (True, False):
        await send(served.address, request(GOOD | {"stream": stream, "n": 2}))
    await send(served.address, request({}))
    page = (await send(served.address, request(path="/metrics", method="GET"))).body.decode()
    wanted = {
        'shuntserve_requests_total{endpoint="/v1/completions",status="200"}': 2,
        'shuntserve_requests_total{endpoint="/v1/completions",status="400"}': 1,
        "shuntserve_completion_tokens_total": 8,
        "shuntserve_prompt_tokens_total": 2 * len(served.backend.submitted[0].prompt),
        "shuntserve_time_to_first_token_seconds_count": 2,
        "shuntserve_requests_in_flight": 0,
        "shuntserve_ready": 1,
        "shuntserve_cluster_in_flight": 0,
        "shuntserve_cluster_steps_total": served.backend.steps,
        'shuntserve_pipeline_in_flight{pipeline="script"}': 0,
    }
    found = dict(line.rsplit(" ", 1) for line in page.splitlines() if line[0] != "#")
    assert {name: float(found[name]) for name in wanted} == wanted


async def test_cors_is_off_until_origins_are_named(serve: Serve) -> None:
    closed = await serve()
    opened = await serve(cors_origins=("https://app.example",))
    for origin, status in (("https://app.example", 204), ("https://evil.example", 405)):
        preflight = request(method="OPTIONS", Origin=origin)
        assert (await send(closed.address, preflight)).status == 405
        assert (await send(opened.address, preflight)).status == status
    for served, allowed in ((closed, False), (opened, True)):
        answer = await send(served.address, request(GOOD, Origin="https://app.example"))
        assert ("Access-Control-Allow-Origin" in answer.headers) == allowed


async def test_tokenize_and_detokenize(serve: Serve) -> None:
    served = await serve()
    text = "the quick fox 🙂"
    body = {"prompt": text, "return_token_strs": True}
    tokens = json.loads((await send(served.address, request(body, "/tokenize"))).body)
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    back = await send(served.address, request({"tokens": tokens["tokens"]}, "/detokenize"))
    assert json.loads(back.body) == {"prompt": text}
    chat = {"messages": [{"role": "user", "content": "fox"}]}
    tokens = json.loads((await send(served.address, request(chat, "/tokenize"))).body)["tokens"]
    back = await send(served.address, request({"tokens": tokens}, "/detokenize"))
    assert json.loads(back.body)["prompt"].startswith("<|im_start|>user\nfox")
    for wrong in ({}, {"prompt": "a", **chat}, {"tokens": [10**6]}):
        path = "/detokenize" if "tokens" in wrong else "/tokenize"
        assert (await send(served.address, request(wrong, path))).status == 400


async def certificate_in(folder: Path) -> tuple[str, str]:
    certificate, key = str(folder / "cert.pem"), str(folder / "key.pem")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    made += ["-nodes", "-keyout", key, "-out", certificate, "-days", "1", "-subj", "/CN=localhost"]
    await asyncio.to_thread(subprocess.run, made, check=True, capture_output=True)
    return certificate, key


async def test_handshakes_under_way_are_counted(serve: Serve, tmp_path: Path) -> None:
    certificate, key = await certificate_in(tmp_path)
    limits = Limits(handshakes=2, header_seconds=1.0)
    served = await serve(tls_certificate=certificate, tls_key=key, limits=limits)
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    port = int(served.url.rpartition(":")[2])
    tls = served.door._tls_server
    assert tls is not None
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
    await until(lambda: len(tls.under_way) == 2)
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", port, ssl=context)
    for reader, writer in silent:  # cut off in their turn
        with suppress(ConnectionError):
            assert await reader.read() == b""
        await hang_up(writer)
    await until(lambda: not tls.under_way)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(request(path="/health", method="GET"))
    assert (await read_answer(reader)).status == 200
    await hang_up(writer)


async def test_tls(serve: Serve, tmp_path: Path) -> None:
    certificate, key = await certificate_in(tmp_path)
    served = await serve(tls_certificate=certificate, tls_key=key)
    assert served.url.startswith("https://127.0.0.1:")
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    port = int(served.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(request(GOOD | {"stream": True}))
    assert (await read_answer(reader)).body.endswith(b"data: [DONE]\n\n")
    writer.close()
    await writer.wait_closed()
    with pytest.raises(UserError, match="not in PEM"):
        await serve(tls_certificate=key, tls_key=certificate)


async def test_a_port_that_is_taken_is_named(serve: Serve, folder: Path) -> None:
    served = await serve()
    door = OpenAIFrontDoor(port=served.address[1])
    with pytest.raises(UserError, match="choose another port"):
        await door.start(ScriptedBackend(), str(folder), MODEL)


def test_the_posture_names_every_open_surface() -> None:
    text = "\n".join(
        OpenAIFrontDoor(host="0.0.0.0", cors_origins=("https://a.example",)).security_posture()
    )
    for word in ("0.0.0.0:8000", "api_keys", "tls_certificate", "/metrics", "cors_origins"):
        assert word in text
    closed = OpenAIFrontDoor(
        api_keys=(ApiKey("a", sha256=hashed(KEY)),), tls_certificate="c", tls_key="k"
    ).security_posture()
    assert closed == ["API keys: a; /health and /ready need none"]


def test_everything_works_on_uvloop_too(folder: Path) -> None:
    """Production runs on it; the other tests run on asyncio's own loop."""

    async def once() -> tuple[bytes, bytes]:
        backend = ScriptedBackend(interval=0.02)
        door = OpenAIFrontDoor(port=0)
        url = await door.start(backend, str(folder), MODEL)
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        whole = await send(address, request(GOOD | {"stream": True}))
        reader, writer = await asyncio.open_connection(*address)
        writer.write(request(GOOD | {"stream": True, "max_tokens": 1000}))
        await reader.readuntil(b"data: ")
        await hang_up(writer)
        await until(lambda: bool(backend.cancelled))
        reader, writer = await asyncio.open_connection(*address)
        writer.write(request(GOOD | {"stream": True, "max_tokens": 1000}))
        await reader.readuntil(b"data: ")
        await door.drain(0.1)
        rest = await reader.read()
        await hang_up(writer)
        return whole.body, rest

    body, cut = uvloop.run(once())
    assert body.endswith(b"data: [DONE]\n\n")
    assert b"shutting_down" in cut
