"""OpenAI's own client for Python."""

from __future__ import annotations

import json
import typing
from typing import Any

import openai
from common import FORMAT, HELLO, JSON, MODEL, TEXT, TOOL, main, raises, run

Urls = dict[str, str]


def client(url: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": url, "api_key": "none", "max_retries": 0, **options})


def chat(url: str, **extra: Any) -> Any:
    return client(url).chat.completions.create(model=MODEL, messages=HELLO, **extra)


def answers(urls: Urls) -> None:
    answer = chat(urls["full"])
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def streams(urls: Urls) -> None:
    options = {"include_usage": True}
    *chunks, last = list(chat(urls["full"], stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert last.usage.completion_tokens > 0


def completions(urls: Urls) -> None:
    made = client(urls["full"]).completions
    assert made.create(model=MODEL, prompt="fox").choices[0].text == TEXT
    parts = made.create(model=MODEL, prompt="fox", stream=True)
    assert "".join(part.choices[0].text for part in parts) == TEXT


def stop_strings(urls: Urls) -> None:
    assert chat(urls["full"], stop=["three"]).choices[0].message.content == "one two "


def several_answers(urls: Urls) -> None:
    assert [c.message.content for c in chat(urls["full"], n=2).choices] == [TEXT] * 2


def logprobs(urls: Urls) -> None:
    found = chat(urls["full"], logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert "".join(entry.token for entry in found) == TEXT
    assert all(len(entry.top_logprobs) == 2 for entry in found)


def json_schema(urls: Urls) -> None:
    answer = chat(urls["full"], response_format=FORMAT)
    assert json.loads(answer.choices[0].message.content) == JSON


def json_schema_without_the_feature(urls: Urls) -> None:
    error = raises(openai.BadRequestError, lambda: chat(urls["plain"], response_format=FORMAT))
    assert (error.param, error.code) == ("response_format", "unsupported_parameter")


def forced_tool_call(urls: Urls) -> None:
    choice = {"type": "function", "function": {"name": "reply"}}
    (call,) = chat(urls["full"], tools=[TOOL], tool_choice=choice).choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("reply", JSON)


def free_choice_of_tools(urls: Urls) -> None:
    chat(urls["full"], tools=[TOOL])


def errors_by_class(urls: Urls) -> None:
    url = urls["full"]
    error = raises(openai.BadRequestError, lambda: chat(url, temperature=9))
    assert (error.param, error.type) == ("temperature", "invalid_request_error")
    error = raises(openai.BadRequestError, lambda: chat(url, max_tokens=100_000))
    assert error.code == "context_length_exceeded"
    made = client(url).chat.completions
    raises(openai.NotFoundError, lambda: made.create(model="other", messages=HELLO))
    raises(openai.AuthenticationError, lambda: chat(urls["keys"]))
    raises(openai.RateLimitError, lambda: chat(urls["full queue"]))
    raises(openai.InternalServerError, lambda: chat(urls["nobody"]))


def retries(urls: Urls) -> None:
    for name in ("busy once", "down once"):
        made = client(urls[name], max_retries=1).chat.completions.with_raw_response
        answer = made.create(model=MODEL, messages=HELLO)
        assert answer.retries_taken == 1
        assert answer.parse().choices[0].message.content == TEXT


def timeouts(urls: Urls) -> None:
    made = client(urls["slow"], timeout=0.5)
    raises(
        openai.APITimeoutError, lambda: made.chat.completions.create(model=MODEL, messages=HELLO)
    )


def leaving_a_stream(urls: Urls) -> None:
    with chat(urls["slow"], stream=True) as stream:
        next(iter(stream))


def response_headers(urls: Urls) -> None:
    made = client(urls["full"]).chat.completions.with_raw_response
    answer = made.create(model=MODEL, messages=HELLO, extra_headers={"X-Request-Id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    assert answer.parse()._request_id == "mine"


def models(urls: Urls) -> None:
    made = client(urls["full"]).models
    assert [model.id for model in made.list()] == [MODEL]
    assert made.retrieve(MODEL).id == MODEL


def asynchronous(urls: Urls) -> None:
    async def ask() -> str:
        options: dict[str, Any] = {"base_url": urls["full"], "api_key": "none"}
        async with openai.AsyncOpenAI(**options) as made:
            stream = await made.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert run(ask()) == TEXT


def parameters_known(urls: Urls) -> None:
    """This may be a newer client than the one in the tests' own environment: nothing that it can
    send is unknown, whether or not it is supported."""
    from openai.types import completion_create_params as text
    from openai.types.chat import completion_create_params as chats

    made = client(urls["full"])
    for path, params, least in (
        ("/chat/completions", chats.CompletionCreateParamsStreaming, {"messages": HELLO}),
        ("/completions", text.CompletionCreateParamsStreaming, {"prompt": "fox"}),
    ):
        for name in typing.get_type_hints(params).keys() - {"model", *least}:
            made.post(path, cast_to=object, body={"model": MODEL, **least, name: None})
            error = raises(
                openai.BadRequestError,
                lambda body={"model": MODEL, **least, name: object.__name__, "n": "x"}: made.post(
                    path,  # noqa: B023 - called at once
                    cast_to=object,
                    body=body,
                ),
            )
            assert error.code != "unknown_parameter", (path, name)


if __name__ == "__main__":
    main(
        answers,
        streams,
        completions,
        stop_strings,
        several_answers,
        logprobs,
        json_schema,
        json_schema_without_the_feature,
        forced_tool_call,
        free_choice_of_tools,
        errors_by_class,
        retries,
        timeouts,
        leaving_a_stream,
        response_headers,
        models,
        asynchronous,
        parameters_known,
    )
