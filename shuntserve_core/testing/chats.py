"""Chats of the kinds that clients send, and what transformers makes of them.

`reference` says what a prompt must be, without knowing how the front door comes to it: it renders a
chat with transformers in every form that means the same, from the one that was sent to the most
changed, and takes the first prompt in which every text is to be found.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from attrs import frozen
from jinja2 import meta

Messages = list[dict[str, Any]]
Render = Callable[[Messages], str]
REASONING = ("reasoning_content", "reasoning", "thinking")

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather <b>now</b> & 'later' in größeren Städten",
        "parameters": {
            "type": "object",
            "properties": {
                "town": {"type": "string", "description": "Name, e.g. 京都"},
                "days": {"type": "integer", "minimum": 1, "default": 1},
                "also": {"type": "array", "items": {"type": "string", "enum": ["wind", "snow"]}},
            },
            "required": ["town"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
_TIME = {
    "type": "function",
    "function": {
        "description": "Local time",
        "name": "get_time",
        "parameters": {"properties": {"zone": {"type": "string"}}, "type": "object"},
    },
}
TOOLS = [_WEATHER, _TIME]


def _says(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def _parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def _call(number: int, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"abcdefgh{number}", "type": "function", "function": function}


def _result(number: int, content: Any) -> dict[str, Any]:
    return _says("tool", content, tool_call_id=f"abcdefgh{number}")


_ASK = _says("user", "How is the weather in Kyōto?")
_CALL = _call(1, "get_weather", '{"town":"Kyōto <京都>", "days": 2}')
_SECOND = _call(2, "get_time", '{"zone": "Asia/Tokyo"}')
_RESULT = _result(1, '{"sky": "clear & dry"}')
_THOUGHT = "They want the sky over Kyōto."
_CALLER: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
_LOOP = [_ASK, _CALLER, _RESULT]
_ANSWER = _says("assistant", "Clear skies.")
_NULLS: dict[str, Any] = {"refusal": None, "annotations": [], "audio": None, "function_call": None}

CHATS: Mapping[str, Mapping[str, Any]] = {
    "user": {"messages": [_says("user", "  Hello <you> & 你好 🙂\n")]},
    "system": {"messages": [_says("system", "Be brief."), _ASK]},
    "history": {
        "messages": [
            _says("system", "Be brief."),
            _says("user", "Hello"),
            _says("assistant", "Good day."),
            _ASK,
        ]
    },
    "developer": {"messages": [_says("developer", "Be brief."), _ASK]},
    "system and developer": {
        "messages": [_says("system", "Be brief."), _says("developer", "Rhyme."), _ASK]
    },
    "late system": {
        "messages": [_says("user", "Hello"), _ANSWER, _says("system", "Be brief."), _ASK]
    },
    "unknown role": {"messages": [_says("critic", "Not good."), _ASK]},
    "parts": {"messages": [_says("user", _parts("First. ", "Second."))]},
    "parts everywhere": {
        "messages": [
            _says("system", _parts("Be brief.", "Rhyme.")),
            _says("user", _parts("Hello")),
            _says("assistant", _parts("Good ", "day.")),
            _ASK,
        ]
    },
    "tools": {"messages": [_ASK], "tools": TOOLS},
    "system and tools": {"messages": [_says("system", "Be brief."), _ASK], "tools": TOOLS},
    "call": {"messages": _LOOP, "tools": TOOLS},
    "call without tools": {"messages": _LOOP},
    "call, no content": {
        "messages": [_ASK, {"role": "assistant", "tool_calls": [_CALL]}, _RESULT],
        "tools": TOOLS,
    },
    "call, empty content": {
        "messages": [_ASK, {**_CALLER, "content": ""}, _RESULT],
        "tools": TOOLS,
    },
    "call, nulls": {
        "messages": [_ASK, {**_CALLER, **_NULLS}, _RESULT, _ANSWER | _NULLS, _ASK],
        "tools": TOOLS,
    },
    "parallel calls": {
        "messages": [
            _ASK,
            {**_CALLER, "tool_calls": [_CALL, _SECOND]},
            _RESULT,
            _result(2, "12:30"),
        ],
        "tools": TOOLS,
    },
    "two calls": {
        "messages": [*_LOOP, {**_CALLER, "tool_calls": [_SECOND]}, _result(2, "12:30")],
        "tools": TOOLS,
    },
    "call and answer": {
        "messages": [*_LOOP, _ANSWER, _says("user", "Thanks.")],
        "tools": TOOLS,
    },
    "call with text": {
        "messages": [_ASK, {**_CALLER, "content": "Let me see."}, _RESULT],
        "tools": TOOLS,
    },
    "result in parts": {
        "messages": [_ASK, _CALLER, _result(1, _parts("clear", "dry"))],
        "tools": TOOLS,
    },
    **{
        name: {
            "messages": [
                _says("user", "Hello"),
                {**_ANSWER, name: "It is a greeting."},
                _ASK,
                {**_CALLER, name: _THOUGHT},
                _RESULT,
            ],
            "tools": TOOLS,
        }
        for name in REASONING
    },
    "documents": {
        "messages": [_ASK],
        "documents": [
            {"title": "Climate", "text": "Mild <all year>."},
            {"text": "Rain in June.", "title": "Seasons"},
        ],
    },
    "no thinking": {"messages": [_ASK], "chat_template_kwargs": {"enable_thinking": False}},
    "thinking on": {"messages": [_ASK], "chat_template_kwargs": {"enable_thinking": True}},
    "no generation prompt": {"messages": [_ASK, _ANSWER], "add_generation_prompt": False},
    "continued": {
        "messages": [_ASK, _says("assistant", "It is ")],
        "continue_final_message": True,
    },
    "names": {"messages": [_says("user", "Hello", name="Ada"), _ANSWER, _ASK]},
}
"""Bodies as clients send them, without what has nothing to do with prompts."""


@frozen
class Form:
    """A way to say the same."""

    text_arguments: bool = False
    empty: str = "sent"
    joined: tuple[str, ...] = ()
    wrapped: tuple[str, ...] = ()
    developer: str = "developer"
    merged: bool = False
    reasoning: str = ""

    @property
    def changes(self) -> Sequence[str]:
        """What differs from what was sent, in words; but for arguments, which are objects."""
        named = {
            "arguments as text": self.text_arguments,
            f"no content as {self.empty}": self.empty != "sent",
            f"parts joined: {', '.join(self.joined)}": self.joined,
            f"texts as parts: {', '.join(self.wrapped)}": self.wrapped,
            f"developer as {self.developer}": self.developer != "developer",
            "messages of the system joined": self.merged,
            f"reasoning as {self.reasoning}": self.reasoning,
        }
        return [words for words, changed in named.items() if changed]


REFUSES = "the template itself refuses them"
LOSES = "it would not show all of them"
IGNORES = "it does not read what they set"
WHY = (REFUSES, LOSES, IGNORES)
"""Reasons to refuse chats."""


@frozen
class Expected:
    """What a prompt must be."""

    prompt: str | None
    """None where the chat must be refused."""
    form: Form
    why: str = ""
    """Why it must be refused: of `WHY`."""
    detail: str = ""


def reference(source: str, chat: Mapping[str, Any], render: Render) -> Expected:
    """The prompt of a chat; `render` is transformers with the template of that `source`."""
    unread = _unread(source, chat)
    if unread:
        return Expected(None, Form(), IGNORES, ", ".join(sorted(unread)))
    expected = _first_whole(chat, render, _forms(source, chat["messages"], wrap=False))
    if expected.prompt is not None:
        return expected
    wrapped = _first_whole(chat, render, _forms(source, chat["messages"], wrap=True))
    return expected if wrapped.prompt is None else wrapped


def _unread(source: str, chat: Mapping[str, Any]) -> set[str]:
    """What would change nothing, and is refused for that."""
    set_here = {*chat.get("chat_template_kwargs", {}), *({"documents"} & chat.keys())}
    if not set_here:
        return set()
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    options["extensions"] = ["jinja2.ext.loopcontrols"]
    environment = jinja2.Environment(**options)  # noqa: S701 - it renders nothing
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source)
    return set_here - meta.find_undeclared_variables(environment.parse(plain))


def _first_whole(chat: Mapping[str, Any], render: Render, forms: Iterable[Form]) -> Expected:
    """The prompt in the least changed form that shows all."""
    found: list[tuple[Form, str]] = []
    reason = ""
    for form in sorted(forms, key=lambda form: len(form.changes)):
        try:
            found.append((form, render(in_form(chat["messages"], form))))
        except Exception as error:  # a template can fail in any way
            reason = reason or f"{type(error).__name__}: {error}"
    if not found:
        return Expected(None, Form(), REFUSES, reason[:200])
    nulls = min(_nulls(prompt) for _, prompt in found)
    whole = [
        (form, prompt)
        for form, prompt in found
        if _nulls(prompt) == nulls and not _notation(prompt) and _complete(chat, prompt)
    ]
    thoughts = [pair for pair in whole if _thought(chat, pair[1])]
    whole = [pair for pair in whole if not pair[0].reasoning]
    if not (thoughts or whole):
        return Expected(None, Form(), LOSES)
    form, prompt = (thoughts or whole)[0]
    return Expected(prompt, form)


def _forms(source: str, messages: Messages, *, wrap: bool) -> Iterator[Form]:
    calls = any(message.get("tool_calls") for message in messages)
    empty = any(not message.get("content") for message in messages)
    lists = sorted({m["role"] for m in messages if isinstance(m.get("content"), list)})
    texts = sorted({m["role"] for m in messages if m.get("content")})
    thoughts = any(name in message for message in messages for name in REASONING)
    developer = any(message["role"] == "developer" for message in messages)
    known = re.search(r"""["']developer["']""", source)
    kept = ["developer"] if known or not developer else []
    for values in itertools.product(
        (False, True) if calls else (False,),
        ("sent", "null", "text", "absent") if empty else ("sent",),
        _subsets(lists),
        _subsets(texts) if wrap else [()],
        [*kept, "system"] if developer else kept,
        (False, True) if developer else (False,),
        ("", *REASONING, "part") if thoughts else ("",),
    ):
        yield Form(*values)


def _subsets(values: Sequence[str]) -> list[tuple[str, ...]]:
    return [s for n in range(len(values) + 1) for s in itertools.combinations(values, n)]


def in_form(messages: Messages, form: Form) -> Messages:
    """The messages in a form; null fields but for contents are left out."""
    changed = [_changed(message, form) for message in messages]
    if not form.merged:
        return changed
    first = list(itertools.takewhile(lambda m: m["role"] in ("system", "developer"), changed))
    text = "\n\n".join(message["content"] for message in first)
    return [{**first[0], "content": text}, *changed[len(first) :]] if first else changed


def _changed(message: Mapping[str, Any], form: Form) -> dict[str, Any]:
    kept = {k: v for k, v in message.items() if (v is not None or k == "content") and v != []}
    role = kept["role"]
    if role == "developer":
        kept["role"] = form.developer
    if "tool_calls" in kept:
        kept["tool_calls"] = [_arguments(call, form) for call in kept["tool_calls"]]
    content = kept.get("content")
    if not content and form.empty != "sent":
        kept.pop("content", None)
        if form.empty != "absent":
            kept["content"] = None if form.empty == "null" else ""
    elif isinstance(content, list) and role in form.joined:
        content = kept["content"] = "\n".join(part["text"] for part in content)
    if isinstance(content, str) and role in form.wrapped:
        kept["content"] = [{"type": "text", "text": content}]
    for name in REASONING if form.reasoning else ():
        if name in kept:
            _think(kept, kept.pop(name), form.reasoning)
    return kept


def _think(message: dict[str, Any], thought: str, where: str) -> None:
    if where != "part":
        message[where] = thought
        return
    content = message.get("content")
    rest = _parts(content) if isinstance(content, str) and content else content or []
    message["content"] = [{"type": "thinking", "thinking": thought}, *rest]


def _arguments(call: Mapping[str, Any], form: Form) -> dict[str, Any]:
    function = dict(call["function"])
    if not form.text_arguments:
        function["arguments"] = json.loads(function["arguments"] or "{}")
    return {**call, "function": function}


def _complete(chat: Mapping[str, Any], prompt: str) -> bool:
    """Whether all is shown but what assistants said beside a call, or thought."""
    for message in chat["messages"]:
        calls = message.get("tool_calls") or []
        if not all(any(_shown(name, prompt) for name in _names(call)) for call in calls):
            return False
        texts = [text for call in calls for text in _call_texts(call)]
        content = message.get("content")
        if not calls and content:
            texts += [part["text"] for part in content] if isinstance(content, list) else [content]
        if not all(_shown(text, prompt) for text in texts):
            return False
    return True


def _names(call: Mapping[str, Any]) -> tuple[str, str]:
    """Either is enough: some models were trained on ids that have the function's name in them."""
    return call["function"]["name"], call["id"]


def _call_texts(call: Mapping[str, Any]) -> list[str]:
    values = json.loads(call["function"]["arguments"] or "{}").values()
    return [value for value in values if isinstance(value, str)]


def _thought(chat: Mapping[str, Any], prompt: str) -> bool:
    last = [m[name] for m in chat["messages"] for name in REASONING if name in m][-1:]
    return any(_shown(text, prompt) for text in last)


def _shown(text: str, prompt: str) -> bool:
    text = text.strip()
    escaped = (json.dumps(text, ensure_ascii=plain)[1:-1] for plain in (False, True))
    return text in prompt or any(form in prompt for form in escaped)


def _nulls(prompt: str) -> int:
    return prompt.count("None")


def _notation(prompt: str) -> bool:
    """Whether a list of parts, or arguments, are written as Python or JSON has them."""
    parts = re.search(r"""["']type["']: ["'](text|thinking)["'], """, prompt)
    return bool(parts or re.search(r"'(town|zone)': '(Ky|Asia)", prompt))
