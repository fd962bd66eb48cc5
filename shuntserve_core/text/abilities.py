"""What a chat template can show, found out by rendering it.

Templates differ in what they want of the same conversation: parts of a message as a list or as one
text, arguments of a call as an object or as text, null or nothing beside a call.  None of it is
written down anywhere, and a template that is handed the wrong form does not complain: it drops the
text, or writes Python's notation of it.  So it is shown small conversations, with words that nobody
else writes, and what comes out is looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

from attrs import frozen

from shuntserve_core.text.template import Budget, ChatTemplate, TemplateError

T = TypeVar("T")
ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names that templates and clients have for what an assistant thought before it answered."""
ABSENT: Any = type("Absent", (), {"__repr__": lambda _: "ABSENT"})()
"""For a content that the message has not."""

_FIRST, _SECOND, _THOUGHT, _NAME = "zqalphazq", "zqbetazq", "zqthoughtzq", "zqcallzq"
_PROBE = Budget(steps=20_000, characters=1 << 20)
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "zqhelpzq",
        "parameters": {
            "type": "object",
            "properties": {"zqkeyzq": {"type": "string", "description": "zqwhatzq"}},
            "required": ["zqkeyzq"],
        },
    },
}
_ID = "zq1zq2zq3"  # nine letters and digits, as Mistral's templates insist


@frozen
class Calls:
    """How a template wants calls in an assistant's message."""

    as_text: bool
    """Arguments as the text that they were sent as; else as the object that it stands for."""
    empty: Sequence[Any]
    """Contents with which a message without text shows its calls: None, "" and `ABSENT`."""
    shown: bool
    """Whether calls are shown at all."""


class Abilities:
    """What one template can show.  Everything is found out when it is first asked for."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._known: dict[tuple[str, str], Any] = {}

    def _once(self, what: str, role: str, find: Callable[[], T]) -> T:
        """What was found out, for the usual roles; others are clients' words, without number."""
        if role not in ROLES:
            return find()
        if (what, role) not in self._known:
            self._known[what, role] = find()
        known: T = self._known[what, role]
        return known

    def find_out(self) -> None:
        """Find out everything now."""
        for role in ROLES:
            self.parts(role), self.wrapped(role), self.empty(role, None), self.empty(role, ABSENT)
        _ = self.calls, self.roles, self.developer, self.reasoning, self.thinking

    def parts(self, role: str) -> bool:
        """Whether messages of a role may have a list of parts as their content."""
        return self._once("parts", role, lambda: self._parts_shown(role))

    def wrapped(self, role: str) -> bool:
        """Whether messages of a role must have a list of parts: a text alone is not shown."""
        return self._once("wrapped", role, lambda: not self.shows(role) and self._shows_part(role))

    def shows(self, role: str) -> bool:
        """Whether a message of this role is in the prompt, with a text as its content."""
        return _FIRST in (self._rendered(role, _FIRST) or "")

    @cached_property
    def roles(self) -> Sequence[str]:
        """Of the usual roles those that are shown."""
        return tuple(role for role in ROLES if self.shows(role) or self.wrapped(role))

    @cached_property
    def developer(self) -> bool:
        """Whether the template knows a role `developer`, rather than writing what it is given."""
        return "developer" in self._template.words and "developer" in self.roles

    def together(self, first: str, second: str) -> bool:
        """Whether messages of these two roles may both stand at the start."""

        def shown() -> bool:
            two = [self._message(first, _FIRST), self._message(second, _SECOND)]
            prompt = self._render([*two, self._hello]) or ""
            return _FIRST in prompt and _SECOND in prompt

        return self._once(f"{first} before", second, shown)

    @cached_property
    def calls(self) -> Calls:
        """How calls are wanted."""
        for as_text in (False, True):
            shown = [empty for empty in (None, "", ABSENT) if self._shows_call(as_text, empty)]
            if shown:
                return Calls(as_text, shown, shown=True)
        harmless = [empty for empty in (None, "", ABSENT) if self._harmless("assistant", empty)]
        return Calls(False, harmless or ("",), shown=False)

    def empty(self, role: str, sent: Any) -> Any:
        """The content for a message without calls that has none, or null."""
        forms = (None, "", ABSENT) if sent is None else (ABSENT, None, "")

        def first() -> Any:
            return next((form for form in forms if self._harmless(role, form)), "")

        return self._once("null" if sent is None else "absent", role, first)

    @cached_property
    def reasoning(self) -> Sequence[str]:
        """Names of the field in which an assistant's thoughts are looked for, the best first."""
        read = [name for name in REASONING if name in self._template.words]
        shown = [name for name in read if self._shows_reasoning(name)]
        return shown or (() if self.thinking else read)

    @cached_property
    def thinking(self) -> bool:
        """Whether an assistant's content may have parts of the type `thinking`."""
        parts = [{"type": "thinking", "thinking": _FIRST}, {"type": "text", "text": _SECOND}]
        prompt = self._rendered("assistant", parts) or ""
        start, end = prompt.find(_FIRST), prompt.rfind(_SECOND)
        return 0 <= start < end and "text" not in prompt[start:end]

    def _parts_shown(self, role: str) -> bool:
        parts = [{"type": "text", "text": text} for text in (_FIRST, _SECOND)]
        prompt = self._rendered(role, parts) or ""
        start, end = prompt.find(_FIRST), prompt.rfind(_SECOND)
        # A list in Python's or JSON's notation has the key in between.
        return 0 <= start < end and "text" not in prompt[start:end]

    def _shows_part(self, role: str) -> bool:
        prompt = self._rendered(role, [{"type": "text", "text": _FIRST}]) or ""
        return bool(re.search(f"""(?<!text["']: ["']){_FIRST}""", prompt))

    def _shows_call(self, as_text: bool, empty: Any) -> bool:
        prompt = self._render(self._calling(as_text, empty)) or ""
        if _FIRST not in prompt or f"'zqkeyzq': '{_FIRST}'" in prompt:
            return False
        text = self._render(self._calling(as_text, "zqcontentzq")) or ""
        return _nulls(prompt) <= _nulls(text) or not text

    def _harmless(self, role: str, empty: Any) -> bool:
        prompt = self._rendered(role, empty)
        if prompt is None:
            return False
        return _nulls(prompt) <= _nulls(self._rendered(role, _FIRST) or "")

    def _shows_reasoning(self, name: str) -> bool:
        thought = {"role": "assistant", name: _THOUGHT, "content": _SECOND}
        calling = self._calling(self.calls.as_text, self.calls.empty[0])
        calling[1] = {**calling[1], name: _THOUGHT}
        chats = ([self._hello, thought], calling[:2], calling)
        found = (self._render(messages) for messages in chats)
        return any(_THOUGHT in (prompt or "") for prompt in found)

    @property
    def _hello(self) -> Mapping[str, Any]:
        return self._message("user", "zqhellozq")

    def _message(self, role: str, text: str) -> Mapping[str, Any]:
        parts = [{"type": "text", "text": text}]
        return {"role": role, "content": parts if self.wrapped(role) else text}

    def _calling(self, as_text: bool, empty: Any) -> list[Any]:
        """A conversation with a call and its result."""
        function = {"name": _NAME, "arguments": _arguments(as_text)}
        call = {"id": _ID, "type": "function", "function": function}
        caller = _with({"role": "assistant"}, empty) | {"tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": _ID, "name": _NAME, "content": "zqresultzq"}
        return [self._hello, caller, result]

    def _rendered(self, role: str, content: Any) -> str | None:
        """The prompt of the first conversation with such a message that is not refused."""
        message = _with({"role": role}, content)
        prompts = (self._render(messages) for messages in self._around(role, message))
        return next((prompt for prompt in prompts if prompt is not None), None)

    def _around(self, role: str, message: Mapping[str, Any]) -> Iterator[list[Any]]:
        if role == "tool":
            calling = self._calling(self.calls.as_text, self.calls.empty[0])[:2]
            result = {**message, "tool_call_id": _ID, "name": _NAME}
            yield [*calling, result]
            yield [self._hello, result]
        elif role == "assistant":
            yield [self._hello, message, self._hello]
            yield [self._hello, message]
        elif role == "user":
            yield [message]
        else:
            yield [message, self._hello]
            yield [self._hello, message]

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> str | None:
        """The prompt, or None where the template refuses."""
        for tools in ([_TOOL], None):
            try:
                return self._template.render(messages, tools=tools, budget=_PROBE)
            except TemplateError:
                continue
        return None


def _arguments(as_text: bool) -> Any:
    arguments = {"zqkeyzq": _FIRST}
    return json.dumps(arguments) if as_text else arguments


def _with(message: dict[str, Any], content: Any) -> dict[str, Any]:
    return message if content is ABSENT else message | {"content": content}


def _nulls(prompt: str) -> int:
    """How often a null is written out in Python's notation."""
    return prompt.count("None")
