from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shuntserve_core.testing.chats import CHATS, TOOLS
from shuntserve_core.text import Budget, OutOfBudget, TextTokenizer
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from tests.core.text.prompts import Both
from tests.core.text.styles import CHATML, NULLS, PARTS_OR_TEXT, STYLES, THINKING

Make = Callable[[str], Both]
HELLO = {"role": "user", "content": "Hello"}
CALL = {"id": "abcdefgh1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
RESULT = {"role": "tool", "tool_call_id": "abcdefgh1", "content": "done"}


@pytest.fixture(scope="module")
def make(folder: Path, byte_level: TextTokenizer) -> Make:
    transformers = pytest.importorskip("transformers")
    hf = transformers.AutoTokenizer.from_pretrained(str(folder))
    return lambda source: Both(source, byte_level, hf)


@pytest.mark.parametrize("style", STYLES)
def test_prompts_equal_those_of_transformers(make: Make, style: str) -> None:
    both = make(STYLES[style])
    shown: Counter[bool] = Counter()
    for name, chat in CHATS.items():
        expected = both.expected(chat)
        assert both.answered(chat) == expected.prompt, (name, expected)
        shown[expected.prompt is not None] += 1
    assert shown[True] >= 5, shown


# Conversations of every shape

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda text: "None" not in text  # the reference counts these
)
_VALUES = st.recursive(
    st.booleans() | st.integers(-(2**70), 2**70) | _TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_TEXT, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def chats(draw: st.DrawFn) -> dict[str, Any]:
    numbers = iter(range(10_000))

    def text() -> str:
        return f"t{next(numbers):04}{draw(_TEXT)}"

    def content() -> Any:
        if draw(st.integers(0, 3)):
            return text()
        return [{"type": "text", "text": text()} for _ in range(draw(st.integers(1, 3)))]

    def calling() -> list[dict[str, Any]]:
        calls = []
        for _ in range(draw(st.integers(1, 2))):
            arguments = {"town": text(), "more": draw(_VALUES)}
            function = {"name": draw(st.sampled_from(["get_weather", "get_time"]))}
            function["arguments"] = json.dumps(arguments, ensure_ascii=draw(st.booleans()))
            call = {"type": "function", "function": function, "id": f"id{next(numbers):07}"}
            calls.append(call)
        message: dict[str, Any] = {"role": "assistant", "tool_calls": calls}
        message |= draw(st.sampled_from([{}, {"content": None}, {"content": ""}]))
        message |= draw(st.sampled_from([{}, {"reasoning": text()}, {"reasoning_content": text()}]))
        results = [{"role": "tool", "tool_call_id": c["id"], "content": content()} for c in calls]
        return [message, *results]

    first = draw(st.sampled_from(["", "", "system", "developer"]))
    messages = [{"role": first, "content": content()}] if first else []
    for _ in range(draw(st.integers(0, 2))):
        messages.append({"role": "user", "content": content()})
        if draw(st.booleans()):
            messages += calling()
        messages.append({"role": "assistant", "content": content()})
    messages.append({"role": "user", "content": content()})
    if draw(st.booleans()):
        messages += calling()
    chat: dict[str, Any] = {"messages": messages}
    if draw(st.booleans()):
        chat["tools"] = draw(st.permutations(TOOLS))
    return chat


@pytest.mark.parametrize("style", STYLES)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(chat=chats())
def test_any_conversation_equals_transformers(make: Make, style: str, chat: Any) -> None:
    both = make(STYLES[style])
    expected = both.expected(chat)
    assert both.answered(chat) == expected.prompt, expected


# What is what it was


def test_nothing_is_sorted_added_or_dropped(make: Make) -> None:
    source = "{{ tools | tojson }}{% for m in messages %}{{ m | tojson }}\n{% endfor %}"
    tools = [
        {
            "type": "function",
            "function": {"strict": None, "parameters": {"b": 1, "a": 2.0}, "name": "f"},
        },
        {"function": {"description": "é<&>", "name": "g"}, "type": "function"},
    ]
    call = {
        "type": "function",
        "id": "1",
        "function": {"arguments": '{"z": 1, "a": [1.5]}', "name": "f"},
    }
    caller = {"tool_calls": [call], "role": "assistant", "content": None}
    shown = {**call, "function": {"arguments": {"z": 1, "a": [1.5]}, "name": "f"}}
    lines = [HELLO, {**caller, "tool_calls": [shown]}, RESULT]
    text = make(source).ours({"messages": [HELLO, caller, RESULT], "tools": tools})
    written = [json.dumps(value, ensure_ascii=False) for value in (tools, *lines)]
    assert text == written[0] + "".join(f"{line}\n" for line in written[1:])


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "thinking"])
@pytest.mark.parametrize("style", ["thinking", "channels", "parts or text"])
def test_thoughts_reach_the_template(make: Make, style: str, field: str) -> None:
    caller = {"role": "assistant", "content": None, "tool_calls": [CALL], field: "two and two"}
    assert "two and two" in make(STYLES[style]).ours({"messages": [HELLO, caller, RESULT]})


def test_thoughts_in_parts_reach_the_template(make: Make) -> None:
    parts = [{"type": "thinking", "thinking": "two and two"}, {"type": "text", "text": "Four."}]
    chat = {"messages": [HELLO, {"role": "assistant", "content": parts}]}
    assert "[THINK]two and two[/THINK]Four." in make(PARTS_OR_TEXT).ours(chat)
    assert "<think>\ntwo and two\n</think>\n\nFour." in make(THINKING).ours(chat)


@pytest.mark.parametrize("source", [CHATML, PARTS_OR_TEXT])
@pytest.mark.parametrize("role", ["user", "system", "developer", "tool"])
def test_nobody_else_has_thoughts(make: Make, source: str, role: str) -> None:
    message = {"role": role, "content": [{"type": "thinking", "thinking": "hm"}]}
    with pytest.raises(ApiError, match="for messages of the assistant") as error:
        make(source).ours({"messages": [message, HELLO]})
    assert error.value.status == 400


def test_what_a_model_refused_is_its_answer(make: Make) -> None:
    for refused in (
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ):
        text = make(CHATML).ours({"messages": [HELLO, refused, HELLO]})
        assert "<|im_start|>assistant\nNo.<|im_end|>" in text


@pytest.mark.parametrize("arguments", ["{broken", "[1]", '"text"'])
def test_arguments_that_are_no_object_stay_as_they_are(make: Make, arguments: str) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    caller = {"role": "assistant", "content": None, "tool_calls": [call]}
    chat = {"messages": [HELLO, caller, RESULT]}
    assert '"arguments": ' + arguments + "}" in make(THINKING).ours(chat)
    assert f"```json\n{arguments}\n```" in make(NULLS).ours(chat)


@pytest.mark.parametrize("arguments", ["", None, {}, {"x": 1}])
def test_arguments_may_be_an_object_or_nothing(make: Make, arguments: Any) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    caller = {"role": "assistant", "content": None, "tool_calls": [call]}
    chat = {"messages": [HELLO, caller, RESULT]}
    shown = json.dumps(arguments or {})
    assert f'"arguments": {shown}}}' in make(THINKING).ours(chat)


# What would be lost

NO_TOOLS = (
    "{% for m in messages %}{% if m.role in ('user', 'system', 'assistant') %}"
    "{{ m.role }}: {{ m.content }}\n"
    "{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        (
            [{"role": "critic", "content": "x"}, HELLO],
            "messages[0]",
            "'critic': it knows system, user",
        ),
        ([HELLO, {"role": "function", "content": "x"}], "messages[1]", "'function'"),
        ([HELLO, RESULT], "messages[1]", "'tool': it knows system, user, assistant"),
        (
            [HELLO, {"role": "assistant", "content": "Hm.", "tool_calls": [CALL]}, HELLO],
            "messages[1]",
            "call 0 of messages[1]: it has no tool calls",
        ),
    ],
)
def test_what_would_be_lost_is_refused(make: Make, messages: Any, param: str, words: str) -> None:
    with pytest.raises(ApiError) as error:
        make(NO_TOOLS).ours({"messages": messages})
    assert (error.value.status, error.value.code) == (400, "template_error")
    assert error.value.param == param
    assert words in error.value.message


def test_a_second_call_that_is_not_shown_is_refused(make: Make) -> None:
    calls = [CALL, {**CALL, "id": "abcdefgh2"}]
    caller = {"role": "assistant", "content": None, "tool_calls": calls}
    with pytest.raises(ApiError, match=r"call 1 of messages\[1\]"):
        make(STYLES["channels"]).ours({"messages": [HELLO, caller, RESULT]})


def test_a_template_s_own_words_come_back(make: Make) -> None:
    with pytest.raises(ApiError, match="System role not supported") as error:
        make(STYLES["turns"]).ours(CHATS["developer"])
    assert (error.value.status, error.value.param) == (400, "messages")


def test_a_text_of_the_same_shape_is_not_looked_at_again(make: Make) -> None:
    both = make(THINKING)
    conversations = both._ours.conversations(with_tools=False)
    assert conversations is not None
    both.ours({"messages": [HELLO]})
    assert len(conversations._whole) == 1
    both.ours({"messages": [{**HELLO, "content": "Another"}]})
    assert len(conversations._whole) == 1


def test_whoever_looks_twice_has_no_more_to_spend(make: Make) -> None:
    both = make(CHATML)
    conversations = both._ours.conversations(with_tools=False)
    assert conversations is not None
    messages = [{"role": "user", "content": "x"}] * 10
    enough = len(conversations.prompt(messages))
    assert conversations.prompt([*messages[:-1], HELLO], budget=Budget(10, enough + 4))
    with pytest.raises(OutOfBudget):
        conversations.prompt(messages, budget=Budget(9, enough))


def test_documents_may_be_among_the_variables(make: Make) -> None:
    both, documents = make(STYLES["documents"]), CHATS["documents"]["documents"]
    chat = {"messages": [HELLO], "chat_template_kwargs": {"documents": documents}}
    assert both.ours(chat) == both.ours({"messages": [HELLO], "documents": documents})
    with pytest.raises(ApiError, match="shows none; put them into a message") as error:
        make(CHATML).ours({"messages": [HELLO], "documents": documents})
    assert error.value.param == "documents"
    for more in ({"documents": documents}, {"chat_template_kwargs": {"documents": ["text"]}}):
        with pytest.raises(ApiError, match="documents are a list of objects"):
            both.ours({**chat, **more})
