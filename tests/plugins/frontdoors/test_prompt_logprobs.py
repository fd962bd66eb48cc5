"""Logprobs of prompts, as evaluation harnesses ask for them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shuntserve_core.testing.frontdoors import FEATURES, ScriptedBackend, fixed
from shuntserve_core.text import TextTokenizer
from tests.plugins.frontdoors.conftest import MODEL, Serve, Served
from tests.plugins.frontdoors.http import request, send

HARNESS = {"model": MODEL, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
"""What lm-evaluation-harness sends for `loglikelihood` (`local-completions`), with `seed`."""


async def ask(served: Served, path: str = "/v1/completions", **body: Any) -> Any:
    answer = await send(served.address, request(body, path))
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


@pytest.mark.parametrize("count", [1, 3])
async def test_a_batch_of_token_ids(serve: Serve, tokenizer: TextTokenizer, count: int) -> None:
    prompts = [tokenizer.encode(text) for text in ("fox dog over", "hello", "dog fox")][:count]
    served = await serve(ScriptedBackend(script=fixed([5])))
    whole = await ask(served, **HARNESS, prompt=prompts, seed=1234)
    assert len(whole["choices"]) == count
    for index, (prompt, choice) in enumerate(zip(prompts, whole["choices"], strict=True)):
        assert choice["index"] == index
        logprobs = choice["logprobs"]
        columns = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        # The prompt, and the one token that was generated.
        assert [len(logprobs[name]) for name in columns] == [len(prompt) + 1] * 4
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        assert logprobs["token_logprobs"][1:] == [-0.5] * len(prompt)
        assert all(len(top) == 1 for top in logprobs["top_logprobs"][1:])
        assert choice["text"].startswith(tokenizer.decode(prompt))
        assert "".join(logprobs["tokens"]) == choice["text"]
        starts = [0]
        for token in logprobs["tokens"][:-1]:
            starts.append(starts[-1] + len(token))
        assert logprobs["text_offset"] == starts
        assert "prompt_logprobs" not in choice
    assert whole["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert whole["usage"]["completion_tokens"] == count
    assert {j.sampling.prompt_logprobs for j in served.backend.submitted} == {1}


async def test_the_token_that_ends_the_answer_has_its_logprob(
    serve: Serve, tokenizer: TextTokenizer
) -> None:
    """Harnesses cut the last one off: without it they would lose the prompt's."""
    prompt = tokenizer.encode("fox dog")
    served = await serve(ScriptedBackend(script=fixed([tokenizer.stop_ids[0]])))
    for extra in ({}, {"stop": ["zebra"]}):
        whole = await ask(served, **HARNESS, prompt=[prompt], **extra)
        (choice,) = whole["choices"]
        assert choice["finish_reason"] == "stop"
        assert choice["text"] == tokenizer.decode(prompt)
        assert len(choice["logprobs"]["tokens"]) == len(prompt) + 1


@pytest.mark.parametrize("logprobs", [None, 0, 2])
async def test_the_prompt_alone(
    serve: Serve, tokenizer: TextTokenizer, logprobs: int | None
) -> None:
    served = await serve()
    body = {"model": MODEL, "prompt": "fox dog", "echo": True, "max_tokens": 0}
    whole = await ask(served, **body, logprobs=logprobs)
    (choice,) = whole["choices"]
    count = whole["usage"]["prompt_tokens"]
    assert choice["text"] == "fox dog"
    assert choice["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 0
    if logprobs is None:
        assert choice["logprobs"] is None
        return
    assert len(choice["logprobs"]["tokens"]) == count
    assert choice["logprobs"]["token_logprobs"] == [None, *[-0.5] * (count - 1)]


async def test_a_stream_begins_with_the_prompts(serve: Serve, tokenizer: TextTokenizer) -> None:
    served = await serve()
    body = HARNESS | {"prompt": "fox dog", "max_tokens": 4, "stream": True}
    answer = await send(served.address, request(body))
    *events, done = answer.body.decode().removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    parts = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    prompt = tokenizer.encode("fox dog")
    assert parts[0]["text"] == "fox dog"
    assert len(parts[0]["logprobs"]["tokens"]) == len(prompt)
    columns = [part["logprobs"] for part in parts if part["logprobs"]]
    assert sum(len(one["tokens"]) for one in columns) == len(prompt) + 4
    offsets = [offset for one in columns for offset in one["text_offset"]]
    assert offsets == sorted(offsets)


@pytest.mark.parametrize("chat", [True, False])
async def test_prompt_logprobs_by_token_id(
    serve: Serve, tokenizer: TextTokenizer, chat: bool
) -> None:
    served = await serve()
    extra: dict[str, Any] = {"model": MODEL, "prompt_logprobs": 2, "max_tokens": 2}
    if chat:
        messages = [{"role": "user", "content": "fox"}]
        whole = await ask(served, "/v1/chat/completions", messages=messages, **extra)
        told = whole["prompt_logprobs"]
    else:
        whole = await ask(served, prompt="fox dog over", **extra)
        told = whole["choices"][0]["prompt_logprobs"]
    prompt = served.backend.submitted[0].prompt
    assert told[0] is None
    assert len(told) == len(prompt)
    for token, entry in zip(prompt[1:], told[1:], strict=True):
        own = entry[str(token)]
        assert own == {"logprob": -0.5, "rank": 1, "decoded_token": tokenizer.token_text(token)}
        assert len(entry) == 2


async def test_alternatives_are_as_many_as_each_asks_for(serve: Serve) -> None:
    served = await serve()
    body = HARNESS | {"prompt": "fox dog", "prompt_logprobs": 3, "max_tokens": 0}
    (choice,) = (await ask(served, **body))["choices"]
    assert {len(entry) for entry in choice["prompt_logprobs"][1:]} == {3}
    assert {len(top) for top in choice["logprobs"]["top_logprobs"][1:]} == {1}


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ],
)
async def test_what_cannot_be_asked(serve: Serve, extra: dict[str, Any], param: str) -> None:
    served = await serve()
    answer = await send(served.address, request({"model": MODEL, "prompt": "fox", **extra}))
    assert (answer.status, answer.error["param"]) == (400, param)


async def test_an_engine_that_cannot_is_told_of(serve: Serve) -> None:
    served = await serve(ScriptedBackend(features=FEATURES - {"prompt_logprobs"}))
    answer = await send(served.address, request(HARNESS | {"prompt": "fox"}))
    assert (answer.status, answer.error["param"]) == (400, "echo")
    assert "leave out echo" in answer.error["message"]
