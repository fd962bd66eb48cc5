"""LiteLLM as a client: `openai/MODEL` with the server's address."""

from __future__ import annotations

import json
from typing import Any

import litellm
from common import FORMAT, HELLO, JSON, MODEL, TEXT, TOOL, main, raises, run

Urls = dict[str, str]
litellm.suppress_debug_info = True


def chat(url: str, **extra: Any) -> Any:
    options = {"model": f"openai/{MODEL}", "api_base": url, "api_key": "none", "messages": HELLO}
    return litellm.completion(**{**options, "max_retries": 0, **extra})


def answers(urls: Urls) -> None:
    answer = chat(urls["full"])
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def streams(urls: Urls) -> None:
    whole = chat(urls["full"])
    chunks = list(chat(urls["full"], stream=True, stream_options={"include_usage": True}))
    parts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(part or "" for part in parts) == TEXT
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def completions(urls: Urls) -> None:
    options: dict[str, Any] = {"api_base": urls["full"], "api_key": "none", "prompt": "fox"}
    made = f"text-completion-openai/{MODEL}"
    assert litellm.text_completion(model=made, **options).choices[0].text == TEXT
    parts = litellm.text_completion(model=made, stream=True, **options)
    assert "".join(part.choices[0].text or "" for part in parts) == TEXT


def stop_strings(urls: Urls) -> None:
    assert chat(urls["full"], stop=["three"]).choices[0].message.content == "one two "


def several_answers(urls: Urls) -> None:
    assert [c.message.content for c in chat(urls["full"], n=2).choices] == [TEXT] * 2


def logprobs(urls: Urls) -> None:
    found = chat(urls["full"], logprobs=True, top_logprobs=2).choices[0].logprobs
    assert "".join(entry.token for entry in found.content) == TEXT


def json_schema(urls: Urls) -> None:
    answer = chat(urls["full"], response_format=FORMAT)
    assert json.loads(answer.choices[0].message.content) == JSON


def json_schema_without_the_feature(urls: Urls) -> None:
    error = raises(litellm.BadRequestError, lambda: chat(urls["plain"], response_format=FORMAT))
    assert "leave out response_format" in str(error)


def forced_tool_call(urls: Urls) -> None:
    choice = {"type": "function", "function": {"name": "reply"}}
    (call,) = chat(urls["full"], tools=[TOOL], tool_choice=choice).choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("reply", JSON)


def free_choice_of_tools(urls: Urls) -> None:
    chat(urls["full"], tools=[TOOL])


def errors_by_class(urls: Urls) -> None:
    url = urls["full"]
    raises(litellm.BadRequestError, lambda: chat(url, temperature=9))
    raises(litellm.ContextWindowExceededError, lambda: chat(url, max_tokens=100_000))
    raises(litellm.NotFoundError, lambda: chat(url, model="openai/other"))
    raises(litellm.AuthenticationError, lambda: chat(urls["keys"]))
    raises(litellm.RateLimitError, lambda: chat(urls["full queue"]))
    raises(litellm.ServiceUnavailableError, lambda: chat(urls["nobody"]))


def retries(urls: Urls) -> None:
    for name in ("busy once", "down once"):
        assert chat(urls[name], max_retries=1).choices[0].message.content == TEXT


def timeouts(urls: Urls) -> None:
    raises(litellm.Timeout, lambda: chat(urls["slow"], timeout=0.5))


def leaving_a_stream(urls: Urls) -> None:
    stream = chat(urls["slow"], stream=True)
    next(iter(stream))
    stream.completion_stream.close()


def response_headers(urls: Urls) -> None:
    answer = chat(urls["full"], extra_headers={"X-Request-Id": "mine"})
    assert answer._hidden_params["additional_headers"]["llm_provider-x-request-id"] == "mine"


def models(urls: Urls) -> None:
    known = litellm.get_valid_models(
        check_provider_endpoint=True,
        custom_llm_provider="openai",
        api_base=urls["full"].removesuffix("/v1"),
        api_key="none",
    )
    assert MODEL in known


def asynchronous(urls: Urls) -> None:
    async def ask() -> tuple[str, str]:
        options: dict[str, Any] = {"api_base": urls["full"], "api_key": "none", "messages": HELLO}
        made = f"openai/{MODEL}"
        whole = await litellm.acompletion(model=made, **options)
        stream = await litellm.acompletion(model=made, stream=True, **options)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return whole.choices[0].message.content, "".join(parts)

    assert run(ask()) == (TEXT, TEXT)


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
    )
