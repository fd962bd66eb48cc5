"""Whatever the size of a request, the event loop does not wait for it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shuntserve_core.text import TextTokenizer
from shuntserve_plugins.frontdoors.openai import desk
from shuntserve_plugins.frontdoors.openai.limits import Limits
from shuntserve_plugins.frontdoors.openai.pool import Busy, TooCostly, WorkerPool
from shuntserve_plugins.frontdoors.openai.prompts import Bounds
from shuntserve_plugins.frontdoors.openai.reading import pack, read, unpack
from tests.plugins.frontdoors.conftest import MODEL, Serve
from tests.plugins.frontdoors.http import request, send, until

WORDS = "the quick brown fox jumps over the lazy dog "
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "fox"}], "max_tokens": 1}


def many(item: str, count: int) -> str:
    return f"[{','.join([item] * count)}]"


def completion(prompt: str, **more: str) -> str:
    fields = {"model": json.dumps(MODEL), "max_tokens": "1", "prompt": prompt, **more}
    return f"{{{','.join(f'{json.dumps(k)}:{v}' for k, v in fields.items())}}}"


def chat(messages: str, **more: str) -> str:
    fields = {"model": json.dumps(MODEL), "max_tokens": "1", "messages": messages, **more}
    return f"{{{','.join(f'{json.dumps(k)}:{v}' for k, v in fields.items())}}}"


USER = '{"role":"user","content":"fox"}'
CASES = {
    "texts": ("/v1/completions", completion(many('"a"', 1_000_000)), "answers"),
    "token lists": ("/v1/completions", completion(many("[1]", 1_000_000)), "answers"),
    "ids": ("/v1/completions", completion(many("9", 2_000_000)), "2000000 tokens"),
    "blanks": ("/v1/completions", completion(json.dumps(" " * 5_000_000)), "tokens can be"),
    "echo": ("/v1/completions", completion(many("9", 2_000_000), echo="true"), "tokens"),
    "n": ("/v1/completions", completion(many('"a"', 64), n="3"), "answers"),
    "bias": (
        "/v1/completions",
        completion('"a"', logit_bias=json.dumps(dict.fromkeys(range(300_000), 1))),
        "",
    ),
    "stops": ("/v1/completions", completion('"a"', stop=many('"b"', 500_000)), "stop"),
    "user": ("/v1/completions", completion('"a"', user=json.dumps("u" * 5_000_000)), "KiB"),
    "field": ("/v1/completions", completion('"a"', **{"k" * 5_000_000: "1"}), "nknown"),
    "choice": ("/v1/chat/completions", chat(f"[{USER}]", tool_choice=f'"{"x" * 10**6}"'), ""),
    "messages": ("/v1/chat/completions", chat(many(USER, 100_000)), "tokens"),
    "message": (
        "/v1/chat/completions",
        chat(json.dumps([{"role": "user", "content": WORDS * 100_000}])),
        "tokens can be",
    ),
    "deep": (
        "/v1/chat/completions",
        chat(f"[{USER}]", chat_template_kwargs='{"a":' + "[" * 1_000_000),
        "nested",
    ),
    "tokenize": ("/tokenize", json.dumps({"prompt": WORDS * 100_000}), "tokens can be"),
    "strings": (
        "/tokenize",
        json.dumps({"prompt": "fox " * 100_000, "return_token_strs": True}),
        "",
    ),
    "detokenize": ("/detokenize", f'{{"tokens":{many("9", 2_000_000)}}}', "2000000 tokens"),
}


@pytest.mark.parametrize("name", CASES)
async def test_what_is_large_is_not_read_on_the_event_loop(
    serve: Serve, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    here = desk.read

    def counted(kind: str, tokenizer: TextTokenizer, bounds: Bounds, raw: bytes) -> Any:
        sizes.append(len(raw))
        return here(kind, tokenizer, bounds, raw)

    monkeypatch.setattr(desk, "read", counted)
    path, body, words = CASES[name]
    served = await serve()
    answer = await send(served.address, request(body.encode(), path))
    if answer.status != 200:
        assert answer.status == 400
        assert words in answer.error["message"]
        assert len(answer.body) < 2000
    else:
        assert name == "strings"
    assert all(size <= desk.SMALL for size in sizes)


def test_both_ways_read_the_same(tokenizer: TextTokenizer) -> None:
    bounds = Bounds(MODEL, 4096, 128, desk.HERE)
    text = {"model": MODEL, "prompt": [WORDS, "fox"], "echo": True, "stop": ["a"], "seed": 5}
    said = {**CHAT, "tools": [], "stop": "x"}
    tokens = {"prompt": WORDS, "return_token_strs": True}
    for kind, body in (("completion", text), ("chat", said), ("tokenize", tokens)):
        raw = json.dumps(body).encode()
        here = read(kind, tokenizer, bounds, raw)
        there = unpack(kind, pack(kind, read(kind, tokenizer, bounds, raw)))
        assert [list(ids) for ids in there.prompts] == [list(ids) for ids in here.prompts]
        assert (list(there.echoes), there.answer) == (list(here.echoes), here.answer)
        if there.body is not None:
            assert there.body.stops == here.body.stops
            assert there.body.seed == here.body.seed


async def test_a_long_request_is_answered_as_a_short_one(serve: Serve) -> None:
    served = await serve()
    text = WORDS * 110
    for body, path in (
        ({"model": MODEL, "prompt": text, "max_tokens": 8, "echo": True}, "/v1/completions"),
        (
            {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 8},
            "/v1/chat/completions",
        ),
    ):
        answer = await send(served.address, request(body, path))
        assert answer.status == 200
        whole = json.loads(answer.body)
        prompt = served.backend.submitted[-1].prompt
        assert whole["usage"]["prompt_tokens"] == len(prompt) > 900
        if "prompt" in body:
            assert whole["choices"][0]["text"].startswith(text)


SLOW = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


async def test_a_template_without_end_is_ended(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "slow.jinja"
    path.write_text(SLOW)
    served = await serve(chat_template=str(path), limits=Limits(text_seconds=0.5, text_workers=1))
    answer = await send(served.address, request(CHAT, "/v1/chat/completions"))
    assert (answer.status, answer.error["code"]) == (400, "too_costly")
    answer = await send(served.address, request({"prompt": WORDS * 110}, "/tokenize"))
    assert answer.status == 200


async def test_a_small_chat_that_needs_more_is_rendered_elsewhere(
    serve: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "long.jinja"
    path.write_text("{% for i in range(9000) %}{% endfor %}{{ messages[0].content }}")
    served = await serve(chat_template=str(path))
    answer = await send(served.address, request(CHAT, "/v1/chat/completions"))
    assert answer.status == 200
    assert served.door._site is not None
    assert served.door._site.desk.pool._idle


@pytest.fixture
def pool() -> Callable[..., WorkerPool]:
    def make(**options: Any) -> WorkerPool:
        options = {"size": 2, "queue": 4, "seconds": 20.0} | options
        return WorkerPool("tests.plugins.frontdoors.echo_worker", b"hello", **options)

    return make


async def test_a_worker_that_was_killed_is_replaced(pool: Callable[..., WorkerPool]) -> None:
    workers = pool(size=1)
    assert await workers.do("a", 1.0, [b"one"]) == b"one"
    first = workers._idle[0].process
    sleeping = asyncio.create_task(workers.do("a", 1.0, [b"sleep once"]))
    await until(lambda: not workers._idle)
    await asyncio.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: first.poll() is not None)
    await until(lambda: bool(workers._running))
    sleeping.cancel()
    assert await workers.do("b", 1.0, [b"two"]) == b"two"
    await workers.close()


async def test_a_job_that_ends_its_worker_is_given_up(pool: Callable[..., WorkerPool]) -> None:
    workers = pool()
    with pytest.raises(TooCostly):
        await workers.do("a", 1.0, [b"die"])
    assert await workers.do("a", 1.0, [b"two"]) == b"two"
    await workers.close()


@pytest.mark.parametrize("job", [b"sleep", b"work"])
async def test_a_job_that_takes_too_long_is_given_up(
    pool: Callable[..., WorkerPool], job: bytes
) -> None:
    workers = pool(seconds=0.3 if job == b"sleep" else 20.0)
    with pytest.raises(TooCostly):
        await workers.do("a", 1.0, [job])
    assert await workers.do("a", 1.0, [b"two"]) == b"two"
    await workers.close()


async def test_nobody_can_take_all_workers(pool: Callable[..., WorkerPool]) -> None:
    workers = pool()
    hogs = [asyncio.create_task(workers.do("hog", 1.0, [b"sleep"])) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await workers.do("hog", 1.0, [b"one more"])
    assert await workers.do("other", 1.0, [b"two"]) == b"two"
    for hog in hogs:
        hog.cancel()
    await workers.close()
    assert not workers._running
