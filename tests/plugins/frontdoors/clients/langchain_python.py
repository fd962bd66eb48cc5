"""LangChain, by its package for OpenAI's API."""

from __future__ import annotations

from typing import Any

import openai
from common import FORMAT, HELLO, JSON, MODEL, SCHEMA, TEXT, TOOL, main, raises, run
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI

Urls = dict[str, str]


def model(url: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        **{"base_url": url, "api_key": "none", "model": MODEL, "max_retries": 0, **options}
    )


def answers(urls: Urls) -> None:
    answer = model(urls["full"]).invoke(HELLO)
    assert answer.content == TEXT
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["output_tokens"] > 0


def streams(urls: Urls) -> None:
    chunks = list(model(urls["full"], stream_usage=True).stream(HELLO))
    assert "".join(chunk.content for chunk in chunks) == TEXT
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) > 0


def completions(urls: Urls) -> None:
    made = OpenAI(base_url=urls["full"], api_key="none", model=MODEL, max_retries=0)
    assert made.invoke("fox") == TEXT
    assert "".join(made.stream("fox")) == TEXT


def stop_strings(urls: Urls) -> None:
    assert model(urls["full"]).invoke(HELLO, stop=["three"]).content == "one two "


def several_answers(urls: Urls) -> None:
    (made,) = model(urls["full"], n=2).generate([[HumanMessage("hello")]]).generations
    assert [one.text for one in made] == [TEXT] * 2


def logprobs(urls: Urls) -> None:
    answer = model(urls["full"], logprobs=True, top_logprobs=2).invoke(HELLO)
    found = answer.response_metadata["logprobs"]["content"]
    assert "".join(entry["token"] for entry in found) == TEXT


def json_schema(urls: Urls) -> None:
    made = model(urls["full"])
    assert made.with_structured_output(SCHEMA, method="json_schema").invoke(HELLO) == JSON
    assert made.with_structured_output(SCHEMA, method="function_calling").invoke(HELLO) == JSON


def json_schema_without_the_feature(urls: Urls) -> None:
    made = model(urls["plain"]).bind(response_format=FORMAT)
    error = raises(openai.BadRequestError, lambda: made.invoke(HELLO))
    assert (error.param, error.code) == ("response_format", "unsupported_parameter")


def forced_tool_call(urls: Urls) -> None:
    made = model(urls["full"]).bind_tools([TOOL], tool_choice="reply")
    (call,) = made.invoke(HELLO).tool_calls
    assert (call["name"], call["args"]) == ("reply", JSON)
    whole = None
    for chunk in made.stream(HELLO):
        whole = chunk if whole is None else whole + chunk
    (call,) = whole.tool_calls
    assert (call["name"], call["args"]) == ("reply", JSON)


def free_choice_of_tools(urls: Urls) -> None:
    model(urls["full"]).bind_tools([TOOL]).invoke(HELLO)


def errors_by_class(urls: Urls) -> None:
    url = urls["full"]
    raises(openai.BadRequestError, lambda: model(url, top_p=9).invoke(HELLO))
    error = raises(openai.BadRequestError, lambda: model(url, max_tokens=100_000).invoke(HELLO))
    assert error.code == "context_length_exceeded"
    raises(openai.NotFoundError, lambda: model(url, model="other").invoke(HELLO))
    raises(openai.AuthenticationError, lambda: model(urls["keys"]).invoke(HELLO))
    raises(openai.RateLimitError, lambda: model(urls["full queue"]).invoke(HELLO))
    raises(openai.InternalServerError, lambda: model(urls["nobody"]).invoke(HELLO))


def retries(urls: Urls) -> None:
    for name in ("busy once", "down once"):
        assert model(urls[name], max_retries=1).invoke(HELLO).content == TEXT


def timeouts(urls: Urls) -> None:
    raises(openai.APITimeoutError, lambda: model(urls["slow"], timeout=0.5).invoke(HELLO))


def leaving_a_stream(urls: Urls) -> None:
    stream = model(urls["slow"]).stream(HELLO)
    next(stream)
    stream.close()


def response_headers(urls: Urls) -> None:
    answer = model(urls["full"], include_response_headers=True).invoke(HELLO)
    assert answer.response_metadata["headers"]["x-request-id"]


def asynchronous(urls: Urls) -> None:
    async def ask() -> tuple[str, str]:
        made = model(urls["full"])
        whole = (await made.ainvoke(HELLO)).content
        return whole, "".join([chunk.content async for chunk in made.astream(HELLO)])

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
        asynchronous,
    )
