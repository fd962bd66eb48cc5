"""Conversations as clients send them, in the form that a chat template shows them in.

A template is written for what its model was trained on, a client writes what OpenAI's API takes.
The two are the same message in other words, so the words are changed, and as little as can be:

- a field that is null is a field that is not there, and so is an empty list of calls;
- arguments of calls are objects, as transformers documents it, or stay text for templates that
  write them as they are;
- parts of text are one text, joined by line breaks, for templates that do not walk parts, and a
  text is one part for those that know nothing else;
- null or missing content is what the template shows the rest of the message with;
- reasoning has the name that the template reads;
- `developer` is `system` for templates that have no such role.

All else is handed over as it was sent, in the order of keys that it was sent in.  Whatever would
still not be in the prompt is refused: see `Conversations.prompt`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, takewhile
from typing import Any

import msgspec

from shuntserve_core.text.abilities import ABSENT, REASONING, Abilities
from shuntserve_core.text.template import (
    AMPLE,
    Budget,
    ChatTemplate,
    Message,
    OutOfBudget,
    TemplateError,
)

_HIDDEN = frozenset({"annotations"})
"""Fields of servers' answers, which histories have; no model was trained on them."""
_PLAIN = frozenset({"role", "content"})
_OF_PARTS = frozenset({"type", "text", "thinking"})
INSTRUCTING = ("system", "developer")
"""Roles of those who say how to answer."""
_MOST_KNOWN = 1024
_LONGEST_KNOWN = 4096
"""Conversations that are remembered to be shown whole, and bytes of each without its texts."""


class Lost(TemplateError):
    """Something of a message would not be in the prompt."""

    def __init__(self, reason: str, index: int) -> None:
        super().__init__(reason)
        self.index = index
        """Of the message."""


class Conversations:
    """Writes prompts by one template."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self.abilities = Abilities(template)
        self._whole: set[bytes] = set()

    def prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
        budget: Budget = AMPLE,
    ) -> str:
        """The prompt: that of transformers' `apply_chat_template` for the `fitted` messages.

        Raises `TemplateError` where the template refuses them, and of that `Lost` where it does
        not show a text of a user, the system or a tool, an answer, or a call.
        """
        shown = fitted(messages, self.abilities)
        options: dict[str, Any] = {"tools": tools, "documents": documents, "extra": extra}
        text = self.template.render(
            shown,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            budget=budget,
            **options,
        )
        self._check_whole(shown, options, budget)
        return text

    def _check_whole(
        self, messages: Sequence[Message], options: Mapping[str, Any], budget: Budget
    ) -> None:
        """Raise `Lost` unless every text is shown, whatever it says.

        Templates decide by the shape of a conversation what they show, so it is rendered once
        more with words in place of its texts, and each word is looked for.
        """
        words: list[_Word] = []
        shape = [_shape(message, index, words) for index, message in enumerate(messages)]
        given = bool(options["tools"]), bool(options["documents"]), options["extra"]
        key = msgspec.json.encode((shape, given))
        if not words or key in self._whole:
            return
        room = Budget(budget.steps, budget.characters + _WORD * len(words))
        try:
            prompt = self.template.render(shape, budget=room, **options)
        except OutOfBudget:
            raise
        except TemplateError:  # it wants something of the texts themselves
            return
        for index, word, what in words:
            if word not in prompt:
                raise self._lost(messages[index], index, what)
        if len(key) <= _LONGEST_KNOWN:
            if len(self._whole) >= _MOST_KNOWN:
                self._whole.clear()
            self._whole.add(key)

    def _lost(self, message: Message, index: int, what: str) -> Lost:
        role = message.get("role")
        reason = f"the model's chat template does not show {what} of messages[{index}]"
        if role not in self.abilities.roles:
            return Lost(
                f"{reason}, whose role is {role!r}: it knows {', '.join(self.abilities.roles)}",
                index,
            )
        if what.startswith("call") and not self.abilities.calls.shown:
            return Lost(f"{reason}: it has no tool calls", index)
        return Lost(f"{reason}, a message of the role {role!r} in this place", index)


# From messages to what the template is shown


def fitted(messages: Sequence[Message], abilities: Abilities) -> list[Message]:
    """The messages as the template shows them."""
    shown = [_fitted(message, abilities) for message in messages]
    if any(message.get("role") == "developer" for message in messages):
        return _joined_instructions(shown, abilities)
    return shown


def _fitted(message: Message, abilities: Abilities) -> Message:
    content = message.get("content")
    if message.keys() == _PLAIN and isinstance(content, str):  # nearly all
        role = message["role"]
        if role != "developer" and not abilities.wrapped(role):
            return message
    shown = {
        name: value
        for name, value in message.items()
        if (value is not None or name == "content") and name not in _HIDDEN
    }
    if shown.get("role") == "developer" and not abilities.developer:
        shown["role"] = "system"
    role = shown.get("role", "")
    calls = shown.get("tool_calls")
    if isinstance(calls, list):
        if calls:
            as_text = abilities.calls.as_text
            shown["tool_calls"] = [_call(call, as_text=as_text) for call in calls]
        else:
            del shown["tool_calls"]
    _place_thoughts(shown, abilities)
    content = _content(shown, role, abilities)
    if content is ABSENT:
        shown.pop("content", None)
    else:
        shown["content"] = content
    return shown


def _content(message: Mapping[str, Any], role: str, abilities: Abilities) -> Any:
    content = message.get("content", ABSENT)
    if isinstance(content, list):
        parts = [_part(part) for part in content]
        if abilities.parts(role) or (role == "assistant" and abilities.thinking):
            return parts
        content = "\n".join(part["text"] for part in parts)
    elif message.get("tool_calls"):
        if not content or content is ABSENT:
            known = abilities.calls.empty
            return content if content in known else known[0]
    elif content is None or content is ABSENT:
        refusal = message.get("refusal")
        content = refusal or abilities.empty(role, content)
    if isinstance(content, str) and abilities.wrapped(role):
        return [{"type": "text", "text": content}]
    return content


def _part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part as templates know it; what a model refused to say is text as well."""
    if "refusal" in part:
        return {"type": "text", "text": part["refusal"]}
    return {name: value for name, value in part.items() if name in _OF_PARTS}


def _call(call: Mapping[str, Any], *, as_text: bool) -> Mapping[str, Any]:
    call = {name: value for name, value in call.items() if value is not None}
    function = dict(call["function"])
    arguments = function.get("arguments")
    if as_text:
        if not isinstance(arguments, str):
            function["arguments"] = json.dumps(arguments or {}, ensure_ascii=False)
    elif isinstance(arguments, str):
        function["arguments"] = _object(arguments)
    elif arguments is None:
        function["arguments"] = {}
    return {**call, "function": function}


def _object(arguments: str) -> Any:
    """The object that a text stands for.  What is none stays text: models write such, too."""
    try:
        value = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _place_thoughts(message: dict[str, Any], abilities: Abilities) -> None:
    """Put what an assistant thought where the template looks for it: a field, or a part."""
    sent = next((name for name in REASONING if name in message), None)
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    thoughts = [part["thinking"] for part in parts if part.get("type") == "thinking"]
    known = abilities.reasoning
    if thoughts and message.get("role") != "assistant":
        raise TemplateError("parts of the type thinking are for messages of the assistant")
    if thoughts and not abilities.thinking:
        message["content"] = [part for part in parts if part.get("type") != "thinking"]
        if sent is None:
            message[known[0] if known else REASONING[0]] = "\n".join(thoughts)
    elif sent is not None and known and not any(name in known for name in message):
        message[known[0]] = message.pop(sent)
    elif sent is not None and not known and abilities.thinking and not thoughts:
        thought = {"type": "thinking", "thinking": message.pop(sent)}
        rest = [{"type": "text", "text": content}] if isinstance(content, str) and content else []
        message["content"] = [thought, *(parts or rest)]


def _joined_instructions(messages: list[Message], abilities: Abilities) -> list[Message]:
    """With one message of the system and the developer at the start, where no more are shown."""
    start = list(takewhile(lambda message: message.get("role") in INSTRUCTING, messages))
    roles = [message["role"] for message in start]
    if all(abilities.together(*two) for two in pairwise(roles)):
        return messages
    texts = [_text(message.get("content")) for message in start]
    text = "\n\n".join(text for text in texts if text)
    parts = [{"type": "text", "text": text}]
    content = parts if abilities.wrapped(roles[0]) else text
    return [{**start[0], "content": content}, *messages[len(start) :]]


def _text(content: Any) -> str:
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if "text" in part]
    return content if isinstance(content, str) else "\n".join(texts)


# What must be in a prompt

_Word = tuple[int, str, str]
"""Index of a message, the word that stands in it for a text, and what text that is."""


def _shape(message: Message, index: int, words: list[_Word]) -> Message:
    """The message with words in place of its texts; those that must be shown are added."""
    shape = dict(message)
    for name in REASONING:
        if name in shape:
            shape[name] = "zqreasonzq"
    calls = shape.get("tool_calls") or []
    if calls:
        shape["tool_calls"] = [
            _call_shape(call, index, number, words) for number, call in enumerate(calls)
        ]
    content = shape.get("content")
    before = len(words)
    if isinstance(content, str) and content.strip():
        shape["content"] = _word(index, "t", "the text", words)
    elif isinstance(content, list):
        shape["content"] = list(_parts_shape(content, index, words))
    if calls:  # beside calls a text may be a thought, of which templates show the latest alone
        del words[before:]
    return shape


def _parts_shape(
    content: Sequence[Mapping[str, Any]], index: int, words: list[_Word]
) -> Iterator[Mapping[str, Any]]:
    for number, part in enumerate(content):
        if "text" in part and part["text"].strip():
            word = _word(index, f"p{number}p", f"part {number}", words)
            yield {**part, "text": word}
        else:
            yield part


def _call_shape(
    call: Mapping[str, Any], index: int, number: int, words: list[_Word]
) -> Mapping[str, Any]:
    function = call["function"]
    arguments: Any = {"zqkeyzq": _word(index, f"c{number}c", f"call {number}", words)}
    if isinstance(function["arguments"], str):
        arguments = json.dumps(arguments)
    return {**call, "function": {**function, "arguments": arguments}}


_WORD = 32
"""Characters of a word, at most."""


def _word(index: int, kind: str, what: str, words: list[_Word]) -> str:
    word = f"zq{index}{kind}zq"
    words.append((index, word, what))
    return word
