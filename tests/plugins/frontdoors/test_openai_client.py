"""The official client works unchanged."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from shuntserve_core.interfaces.frontdoor import Refused
from shuntserve_core.journal import Journal
from shuntserve_core.testing.frontdoors import FEATURES, Reply, ScriptedBackend, fixed
from shuntserve_core.text import TextTokenizer
from tests.plugins.frontdoors.conftest import MODEL, Serve

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "f"}}]


def says(tokenizer: TextTokenizer, text: str, **options: Any) -> ScriptedBackend:
    """A cluster that answers with a text and an end token."""
    tokens = [*tokenizer.encode(text), tokenizer.stop_ids[0]]
    return ScriptedBackend(script=fixed(tokens), **options)


@pytest.mark.parametrize("per_step", [1, 3, 100])
async def test_chat(serve: Serve, tokenizer: TextTokenizer, per_step: int) -> None:
    text = "Voilà: 你好 🙂 great"
    served = await serve(says(tokenizer, text, per_step=per_step))
    async with served.client() as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO)
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    journal = served.backend.submitted[0]
    assert answer.choices[0].message.content == text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(journal.prompt)
    assert answer.usage.completion_tokens == len(journal.output)
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(deltas) == text
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == [
        "stop"
    ]
    assert chunks[-1].usage == answer.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert tokenizer.decode(journal.prompt, skip_special_tokens=False).endswith(
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "prompt", ["fox dog", ["fox", "dog over"], [40, 41, 42], [[40, 41], [42, 43, 44]]]
)
async def test_completions_take_every_form_of_prompt(serve: Serve, prompt: Any) -> None:
    served = await serve()
    async with served.client() as client:
        answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=5, n=2)
        stream = await client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=5, n=2, stream=True
        )
        streamed: dict[int, str] = {}
        async for chunk in stream:
            for choice in chunk.choices:
                streamed[choice.index] = streamed.get(choice.index, "") + choice.text
    assert {choice.index: choice.text for choice in answer.choices} == streamed
    half = served.backend.submitted[: len(answer.choices)]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5 * len(half)
    assert answer.usage.prompt_tokens == sum(len(j.prompt) for j in half) // 2
    assert all(choice.finish_reason == "length" for choice in answer.choices)


async def test_n_answers_have_seeds_in_a_row(serve: Serve) -> None:
    served = await serve()
    async with served.client() as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=HELLO, n=3, seed=7, max_tokens=4
        )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [j.sampling.seed for j in served.backend.submitted] == [7, 8, 9]
    assert len({j.id for j in served.backend.submitted}) == 3


async def test_every_parameter_reaches_the_engine(serve: Serve, tokenizer: TextTokenizer) -> None:
    served = await serve()
    async with served.client() as client:
        await client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            max_completion_tokens=9,
            temperature=0.5,
            top_p=0.25,
            presence_penalty=1.5,
            frequency_penalty=-1.5,
            logit_bias={"17": 5},
            logprobs=True,
            top_logprobs=3,
            seed=-1,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "object"}},
            },
            extra_body={
                "top_k": 4,
                "min_p": 0.1,
                "repetition_penalty": 1.1,
                "min_tokens": 2,
                "stop_token_ids": [30, 31],
            },
        )
    s = served.backend.submitted[0].sampling
    assert (s.max_tokens, s.min_tokens, s.temperature, s.top_p) == (9, 2, 0.5, 0.25)
    assert (s.top_k, s.min_p, s.repetition_penalty) == (4, 0.1, 1.1)
    assert (s.presence_penalty, s.frequency_penalty) == (1.5, -1.5)
    assert s.logit_bias == {17: 5}
    assert s.stop_token_ids == (*tokenizer.stop_ids, 30, 31)
    assert s.logprobs == 3
    assert s.seed == 2**63 - 1
    assert s.guided == {"json_schema": {"type": "object"}}


async def test_ignore_eos_leaves_only_the_clients_end_tokens(serve: Serve) -> None:
    served = await serve()
    async with served.client() as client:
        await client.completions.create(
            model=MODEL, prompt="fox", extra_body={"ignore_eos": True, "stop_token_ids": [9]}
        )
    assert served.backend.submitted[0].sampling.stop_token_ids == (9,)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stop_string_is_never_partly_sent(
    serve: Serve, tokenizer: TextTokenizer, stream: bool
) -> None:
    """And the engine is told to stop, and what it did after is not counted."""
    backend = says(tokenizer, "one two STOP three four five")
    served = await serve(backend)
    async with served.client() as client:
        answer: Any = await client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            stop=["STOP", "never"],
            stream=stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
        )
        if stream:
            chunks = [chunk async for chunk in answer]
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            finish, usage = chunks[-2].choices[0].finish_reason, chunks[-1].usage
        else:
            text = answer.choices[0].message.content
            finish, usage = answer.choices[0].finish_reason, answer.usage
    assert text == "one two "
    assert finish == "stop"
    assert usage.completion_tokens == len(tokenizer.encode("one two STOP"))
    assert backend.cancelled == [backend.submitted[0].id]
    assert not backend.running


async def test_logprobs_of_a_chat(serve: Serve, tokenizer: TextTokenizer) -> None:
    text = "Voilà 🙂"
    served = await serve(says(tokenizer, text, per_step=2))
    async with served.client() as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2
        )
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2, stream=True
        )
        streamed = [
            entry
            async for chunk in stream
            if chunk.choices[0].logprobs
            for entry in chunk.choices[0].logprobs.content or []
        ]
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    joined = b"".join(bytes(entry.bytes or []) for entry in content)
    assert joined.decode() == text
    assert streamed == content
    assert all(len(entry.top_logprobs) == 2 for entry in content)


async def test_logprobs_of_a_completion(serve: Serve) -> None:
    served = await serve()
    async with served.client() as client:
        answer = await client.completions.create(
            model=MODEL, prompt="fox dog", max_tokens=4, logprobs=2
        )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == answer.choices[0].text
    assert logprobs.token_logprobs == [-0.5] * 4
    offsets = logprobs.text_offset or []
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    assert all(len(top) in (2, 3) for top in logprobs.top_logprobs or [])


@pytest.mark.parametrize("prompt", ["the fox", [40, 41, 42]])
@pytest.mark.parametrize("stream", [True, False])
async def test_echo(serve: Serve, tokenizer: TextTokenizer, prompt: Any, stream: bool) -> None:
    served = await serve()
    async with served.client() as client:
        answer: Any = await client.completions.create(
            model=MODEL, prompt=prompt, echo=True, max_tokens=3, stream=stream
        )
        if stream:
            text = "".join([c.choices[0].text async for c in answer])
        else:
            text = answer.choices[0].text
    written = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    assert text == written + tokenizer.decode(([*ids] * 3)[:3])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_forced_tool_call(
    serve: Serve, tokenizer: TextTokenizer, choice: Any, stream: bool
) -> None:
    arguments = '{"a": 1, "b": 2}'
    served = await serve(says(tokenizer, arguments))
    tool: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    async with served.client() as client:
        answer: Any = await client.chat.completions.create(
            model=MODEL, messages=HELLO, tools=[tool], tool_choice=choice, stream=stream
        )
        if stream:
            chunks = [chunk.choices[0] async for chunk in answer]
            calls = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
            name = calls[0].function.name
            text = "".join(call.function.arguments for call in calls)
            finish = chunks[-1].finish_reason
        else:
            call = answer.choices[0].message.tool_calls[0]
            name, text = call.function.name, call.function.arguments
            finish = answer.choices[0].finish_reason
    assert (name, text, finish) == ("add", arguments, "tool_calls")
    assert served.backend.submitted[0].sampling.guided == {"json_schema": {"type": "object"}}


async def test_messages_in_parts_and_models(serve: Serve, tokenizer: TextTokenizer) -> None:
    served = await serve()
    parts: Any = [{"type": "text", "text": "fox"}, {"type": "text", "text": "dog"}]
    async with served.client() as client:
        await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": parts}], max_tokens=1
        )
        listed = [model.id async for model in client.models.list()]
        assert (await client.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("another")
    assert listed == [MODEL]
    assert "fox\ndog" in tokenizer.decode(served.backend.submitted[0].prompt)


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"model": "another"}, "model", "does not exist"),
        ({"messages": []}, "messages", "length >= 1"),
        ({"temperature": 3}, "temperature", "<= 2"),
        ({"stop": ["a"] * 5}, "stop", "length <= 4"),
        ({"n": 0}, "n", ">= 1"),
        ({"max_tokens": 5000}, "max_tokens", "maximum context length is 4096"),
        ({"max_tokens": 3, "extra_body": {"min_tokens": 4}}, "min_tokens", "3 tokens"),
        ({"logit_bias": {"100000": 1}}, "logit_bias", "token ids from 0"),
        ({"logit_bias": {"fox": 1}}, "logit_bias", "token ids from 0"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"extra_body": {"temprature": 1}}, "temprature", "did you mean 'temperature'"),
        ({"extra_body": {"stop_token_ids": [99999]}}, "stop_token_ids", "ids go from 0"),
        ({"tools": TOOLS}, "tools", "free to call tools"),
        ({"tools": TOOLS, "tool_choice": "auto"}, "tool_choice", "tool_choice 'none'"),
        ({"n": 128, "max_tokens": 1, "extra_body": {"n": 129}}, "n", "<= 128"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "image_url",
        ),
        (
            {
                "messages": HELLO,
                "extra_body": {"continue_final_message": True, "add_generation_prompt": True},
            },
            "continue_final_message",
            "exclude each other",
        ),
    ],
)
async def test_mistakes_name_the_parameter(
    serve: Serve, changes: dict[str, Any], param: str, words: str
) -> None:
    served = await serve()
    request: Any = {"model": MODEL, "messages": HELLO} | changes
    async with served.client() as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**request)
    assert caught.value.status_code == (404 if param == "model" else 400)
    assert caught.value.param == param
    assert words in caught.value.message
    assert not served.backend.submitted


@pytest.mark.parametrize(
    ("feature", "param", "changes"),
    [
        ("sampling", "temperature", {"temperature": 0.7}),
        ("top_p", "top_p", {"top_p": 0.5}),
        ("top_k", "top_k", {"extra_body": {"top_k": 5}}),
        ("min_p", "min_p", {"extra_body": {"min_p": 0.5}}),
        ("presence_penalty", "presence_penalty", {"presence_penalty": 1}),
        ("frequency_penalty", "frequency_penalty", {"frequency_penalty": 1}),
        ("repetition_penalty", "repetition_penalty", {"extra_body": {"repetition_penalty": 1.2}}),
        ("logit_bias", "logit_bias", {"logit_bias": {"1": 1}}),
        ("min_tokens", "min_tokens", {"extra_body": {"min_tokens": 3}}),
        ("logprobs", "logprobs", {"logprobs": True}),
        ("prompt_logprobs", "prompt_logprobs", {"extra_body": {"prompt_logprobs": 1}}),
        ("guided", "response_format", {"response_format": {"type": "json_object"}}),
        ("guided", "structured_outputs", {"extra_body": {"structured_outputs": {"regex": "a"}}}),
        ("guided", "tools", {"tools": TOOLS, "tool_choice": "required"}),
    ],
)
async def test_what_no_engine_can_is_a_clear_400(
    serve: Serve, feature: str, param: str, changes: dict[str, Any]
) -> None:
    served = await serve(ScriptedBackend(features=FEATURES - {feature}))
    async with served.client() as client:
        with pytest.raises(openai.BadRequestError, match=f"has no {feature}: .*{param}") as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO, **changes)
        assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")
        await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
    greedy = served.backend.submitted[0].sampling.temperature == 0
    assert greedy == (feature == "sampling")


async def test_scores_of_an_echo_are_refused_by_what_was_sent(serve: Serve) -> None:
    served = await serve(ScriptedBackend(features=FEATURES - {"prompt_logprobs"}))
    async with served.client() as client:
        with pytest.raises(
            openai.BadRequestError, match="prompt_logprobs: leave out echo"
        ) as caught:
            await client.completions.create(model=MODEL, prompt="fox", echo=True, logprobs=1)
    assert caught.value.param == "echo"


async def test_refusals_keep_status_and_retry_after(serve: Serve) -> None:
    served = await serve(ScriptedBackend(refusal=Refused(429, "The queue is full", 2.5)))
    async with served.client() as client:
        for stream in (True, False):
            with pytest.raises(openai.RateLimitError) as caught:
                await client.completions.create(model=MODEL, prompt="fox", stream=stream)
            assert caught.value.response.headers["Retry-After"] == "3"


async def test_a_stream_that_fails_ends_with_an_error_and_not_with_done(
    serve: Serve, tokenizer: TextTokenizer
) -> None:
    tokens = tokenizer.encode("fox jumps over")
    served = await serve(ScriptedBackend(script=fixed(tokens, "error", "no pipeline is left")))
    async with served.client() as client:
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        texts: list[str] = []

        async def read() -> None:
            async for chunk in stream:
                texts.append(chunk.choices[0].delta.content or "")

        with pytest.raises(openai.APIError, match="no pipeline is left"):
            await read()
        async with client.chat.completions.with_streaming_response.create(
            model=MODEL, messages=HELLO, stream=True
        ) as raw:
            body = (await raw.read()).decode()
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert "".join(texts)
    assert "[DONE]" not in body
    assert body.rstrip().splitlines()[-1].startswith('data: {"error":{"message":')
    assert caught.value.status_code == 503


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "invalid_request_error"), (500, "server_error")]
)
async def test_a_failure_says_whose_fault_it_is(serve: Serve, status: int, kind: str) -> None:
    reply = Reply((), "error", "no such grammar", status, None)
    served = await serve(ScriptedBackend(script=lambda _: reply))
    async with served.client() as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert (caught.value.status_code, caught.value.type) == (status, kind)
    assert "Retry-After" not in caught.value.response.headers


async def test_a_request_that_makes_engines_end_is_not_sent_again(serve: Serve) -> None:
    asked: list[Journal] = []

    def script(journal: Journal) -> Reply:
        asked.append(journal)
        return Reply((), "error", "given up", 500, None, "kills_engines")

    served = await serve(ScriptedBackend(script=script))
    async with served.client() as client:
        patient = client.with_options(max_retries=3)
        with pytest.raises(openai.InternalServerError) as caught:
            await patient.completions.create(model=MODEL, prompt=["a", "b"], n=2)
    assert caught.value.code == "kills_engines"
    assert len(asked) <= 4
    assert len({journal.group for journal in asked}) == 1
    assert asked[0].group


async def test_a_stream_that_fails_before_its_first_token_is_a_plain_error(
    serve: Serve,
) -> None:
    backend = ScriptedBackend(script=lambda _: Reply((), "error", "gone"))
    served = await serve(backend)
    async with served.client() as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    assert caught.value.status_code == 503
    assert caught.value.response.headers["Retry-After"] == "1"
