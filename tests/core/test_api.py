"""The interfaces of agents and of the control plane: what is wrong is told, with status 400."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shuntserve_core.api import checked_host, checked_module, checked_name
from shuntserve_core.errors import UserError
from shuntserve_core.node.agent import Agent
from shuntserve_core.node.server import make_app
from shuntserve_core.runtime.control import CONTROL_FILE, ControlServer
from shuntserve_core.types.spot import SpotEvent

TOKEN = "t" * 40
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
SPEC = {
    "weights": "/nonexistent",
    "model": "org/m",
    "tp": 1,
    "rank": 0,
    "start": 0,
    "stop": 1,
    "first": True,
    "last": False,
}
COMMAND = {"node": "n#0", "argv": ["true"]}


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[tuple[Agent, TestClient[Any, Any]]]:
    agent = Agent("n#0", 1, tmp_path)
    async with TestClient(TestServer(make_app(agent, TOKEN))) as client:
        yield agent, client
    await agent.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "reason"),
    [
        ("PUT", "/v1/stores/0", b"", "the body is not JSON"),
        ("PUT", "/v1/stores/0", b"\xff", "the body is not JSON"),
        ("PUT", "/v1/stores/0", b"[" * 100_000, "nested more than 64"),
        ("PUT", "/v1/stores/0", [], "body"),
        ("PUT", "/v1/stores/0", {**SPEC, "tp": "1"}, "expected int, got '1' @ body.tp"),
        ("PUT", "/v1/stores/0", {**SPEC, "tp": True}, "expected int, got True @ body.tp"),
        ("PUT", "/v1/stores/0", {**SPEC, "tp": 0}, "'tp' must be"),
        ("PUT", "/v1/stores/0", {**SPEC, "start": -1}, "'start' must be"),
        ("PUT", "/v1/stores/0", {**SPEC, "more": 1}, "extra fields found (more)"),
        ("PUT", "/v1/stores/0", {**SPEC, "model": "../.."}, "is not the name of a model"),
        ("PUT", "/v1/stores/0", {**SPEC, "model": "a/b/c"}, "is not the name of a model"),
        ("PUT", "/v1/stores/9", SPEC, "has no GPU 9"),
        ("PUT", "/v1/stores/..%2f0", SPEC, "the GPU is '../0'"),
        ("DELETE", "/v1/stores/nan", None, "the GPU is 'nan'"),
        ("POST", "/v1/stores/0/retain", {}, "body"),
        ("POST", "/v1/stores/0/retain", [{**SPEC, "model": "x"}], "not the name of a model"),
        ("POST", "/v1/engines/..%2f..%2fx", {"commands": [], "launch": {}}, "not the name of an"),
        ("POST", "/v1/engines/.hidden", {"commands": [], "launch": {}}, "not the name of an"),
        ("POST", "/v1/engines/e", {"commands": [COMMAND]}, "launch"),
        ("POST", "/v1/engines/e", {"commands": [{"argv": []}], "launch": {}}, "node"),
        (
            "POST",
            "/v1/engines/e",
            {"commands": [{"node": "n", "argv": "true"}], "launch": {}},
            "expected a list, got 'true'",
        ),
        ("POST", "/v1/engines/e", {"commands": 3, "launch": {}}, "body"),
        (
            "POST",
            "/v1/engines/e",
            {"commands": [{**COMMAND, "template": {"module": "../x"}}], "launch": {}},
            "'../x' is not the name of a module",
        ),
        ("DELETE", "/v1/engines/e?grace=nan", None, "grace is 'nan', not a number"),
        ("DELETE", "/v1/engines/e?grace=1e999", None, "grace is '1e999', not a number"),
        ("DELETE", "/v1/engines/e?grace=-1", None, "grace is '-1', not a number"),
        ("DELETE", "/v1/engines/e?grace=x", None, "grace is 'x', not a number"),
        ("POST", "/v1/templates", {"module": "/etc/x"}, "is not the name of a module"),
        ("POST", "/v1/templates", {"module": 3}, "expected str, got 3"),
        ("POST", "/v1/ports", {}, "body"),
        ("POST", "/v1/ports", {"host": "a/b"}, "is not the name of an address"),
        ("POST", "/v1/ports", {"host": "203.0.113.9"}, "cannot listen on 203.0.113.9"),
        ("PUT", "/v1/spot", [{"source": "nope", "options": {}}], "nope"),
        ("PUT", "/v1/spot", [{"source": "trace", "options": {}}], "spot trace.file: is missing"),
        ("PUT", "/v1/spot", [{"source": "trace", "options": [1]}], "body"),
        ("PUT", "/v1/spot", {"source": "trace"}, "expected a list"),
        ("PUT", "/v1/plugins", {"disabled": "all"}, "expected a list"),
        (
            "PUT",
            "/v1/spot",
            b'[{"source": "aws", "options": {"interval": NaN}}]',
            "NaN is no number",
        ),
    ],
)
async def test_what_an_agent_is_told_wrongly(
    agent: tuple[Agent, TestClient[Any, Any]], method: str, path: str, body: Any, reason: str
) -> None:
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    async with agent[1].request(method, path, data=data, headers=HEADERS) as response:
        answer = await response.json()
    assert response.status == 400, answer
    assert reason in answer["error"]
    assert "\n" not in answer["error"]


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/stores/0", "/v1/spot"])
async def test_other_answers_are_json_too(
    agent: tuple[Agent, TestClient[Any, Any]], path: str
) -> None:
    async with agent[1].get(path, headers=HEADERS) as response:
        assert response.status in (404, 405)
        assert (await response.json())["error"]


@pytest.mark.parametrize("given", ["", "Bearer ", "Bearer \udcff", "Bearer ü" + TOKEN, TOKEN])
async def test_without_its_secret_nothing_is_told(
    agent: tuple[Agent, TestClient[Any, Any]], given: str
) -> None:
    url = agent[1].make_url("/")
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"GET /v1/node HTTP/1.1\r\nHost: x\r\nAuthorization: ")
    writer.write(given.encode("utf-8", "surrogateescape") + b"\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 401")


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["", "..", "../../x", "/etc/passwd", "a\0b", "n#0", "org/m", "trace"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@given(
    path=st.sampled_from(["stores/0/retain", "templates", "ports", "spot"]),
    body=junk
    | st.fixed_dictionaries({"source": junk, "options": junk})
    | st.fixed_dictionaries({"module": junk, "environment": junk})
    | st.fixed_dictionaries({"host": junk})
    | st.lists(st.fixed_dictionaries(dict.fromkeys(SPEC, junk)), max_size=2),
)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_body_is_an_error_of_ours(tmp_path: Path, path: str, body: Any) -> None:
    async def ask() -> tuple[int, Any]:
        agent = Agent("n#0", 1, tmp_path)
        async with TestClient(TestServer(make_app(agent, TOKEN))) as client:
            data = json.dumps(body).encode()
            method = "PUT" if path in ("spot", "plugins") else "POST"
            asked = client.request(method, f"/v1/{path}", data=data, headers=HEADERS)
            async with asked as response:
                answer = response.status, await response.json()
        await agent.close()
        return answer

    status, answer = asyncio.run(ask())
    assert status in (200, 400), answer


@pytest.mark.parametrize("text", ["", "..", ".x", "a/b", "a b", "a\0", "x" * 300, "-x", "a\n"])
def test_names(text: str) -> None:
    assert checked_name("exact-1-0a1b", "an engine") == "exact-1-0a1b"
    assert checked_module("a.b_c") == "a.b_c"
    assert checked_host("fe80::1") == "fe80::1"
    for check in (lambda t: checked_name(t, "an engine"), checked_module, checked_host):
        with pytest.raises(UserError, match="is not the name of"):
            check(text)


class _Membership:
    def __init__(self) -> None:
        self.heard: list[SpotEvent] = []

    def on_spot_event(self, event: SpotEvent) -> None:
        self.heard.append(event)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the body is not JSON"),
        (b"{}", "node"),
        (b'{"node": ["n#0"], "kind": "notice"}', "expected str"),
        (b'{"node": "../n", "kind": "notice"}', "no node is called"),
        (b'{"node": "n#0", "kind": "explode"}', "'kind' must be in"),
        (b'{"node": "n#0", "kind": "notice", "notice": NaN}', "NaN is no number"),
        (b'{"node": "n#0", "kind": "notice", "notice": 1e999}', "too large"),
        (b'{"node": "n#0", "kind": "notice", "notice": 1e300}', "'notice' must be"),
        (b'{"node": "n#0", "kind": "notice", "notice": -1}', "'notice' must be"),
        (b'{"node": "n#0", "kind": "notice", "notice": "5"}', "expected float"),
        (b'{"node": "n#0", "kind": "notice", "deadline": 5}', "extra fields"),
    ],
)
async def test_what_the_control_plane_is_told_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes, reason: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    membership = _Membership()
    manager: Any = SimpleNamespace(
        cluster=SimpleNamespace(nodes={"n#0": None}), membership=membership
    )
    server = ControlServer(manager, tmp_path, dict)
    url = await server.start()
    token = json.loads((tmp_path / CONTROL_FILE).read_text())["token"]
    try:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
            async with session.post(f"{url}/v1/events", data=body) as response:
                answer = await response.json()
            assert response.status == 400
            assert reason in answer["error"]
            assert not membership.heard
            right = {"node": "n#0", "kind": "notice", "notice": 5}
            async with session.post(f"{url}/v1/events", json=right) as response:
                assert response.status == 200
            assert [event.node for event in membership.heard] == ["n#0"]
    finally:
        await server.close()
