"""Chat messages to a prompt, by the Jinja template that comes with a model.

Templates are somebody else's code: they run in Jinja's immutable sandbox.  They see what they see
in transformers: `raise_exception`, `strftime_now`, a `tojson` that does not escape HTML, loop
controls, and a `generation` tag, which here marks nothing.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]


class TemplateError(Exception):
    """The template refuses these messages, or cannot render them."""


class ChatTemplate:
    """A compiled template, with the special tokens that it may name."""

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None) -> None:
        """Compile; raises `TemplateError` if it is no template."""
        self.source = source
        self._tokens = dict(tokens or {})
        try:
            self._template = _compile(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template is not valid: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt.  `extra` are further variables of the template (`enable_thinking`...)."""
        mark = ""
        if continue_final_message:
            messages, mark = _marked(messages)
        variables = {
            **self._tokens,
            **(extra or {}),
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            prompt = self._template.render(variables)
        except Exception as error:  # a template can fail in any way at all
            raise TemplateError(f"the chat template refused the messages: {error}") from error
        return _cut_at(prompt, mark) if mark else prompt


_MARK = "\N{WORD JOINER}shuntserve-continues-here\N{WORD JOINER}"


def _marked(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """Mark the end of the last message, to find it in the prompt again."""
    copied: list[Any] = copy.deepcopy(list(messages))
    content = copied[-1].get("content") if copied else None
    if not isinstance(content, str):
        raise TemplateError("there is no text in the last message to continue")
    copied[-1] = {**copied[-1], "content": content + _MARK}
    return copied, _MARK


def _cut_at(prompt: str, mark: str) -> str:
    end = prompt.rfind(mark)
    if end < 0:
        raise TemplateError("the chat template does not show the end of the last message")
    return prompt[:end]


class _Generation(Extension):
    """The `generation` block of training templates: rendered as if the tag were not there."""

    tags = {"generation"}  # noqa: RUF012 - the signature of Jinja's base class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # noqa: DTZ005 - models were trained on local dates
