"""Chat messages to a prompt, by the Jinja template that comes with a model.

Templates are somebody else's code: they run in Jinja's immutable sandbox, and within a budget:
every round of a loop, every call of a macro and every character written is counted, so that no
template holds up whoever renders it.  Templates see what they see
in transformers: `raise_exception`, `strftime_now`, a `tojson` that does not escape HTML, loop
controls, and a `generation` tag, which here marks nothing.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from types import MethodType
from typing import Any

import jinja2
from attrs import define
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

Message = Mapping[str, Any]


class TemplateError(Exception):
    """The template refuses these messages, or cannot render them."""


class OutOfBudget(TemplateError):
    """Rendering takes more than it was given; with more it may succeed."""


@define
class Budget:
    """What a template may use up."""

    steps: int
    """Rounds of loops and calls of macros."""
    characters: int
    """Of the prompt, and of any text on the way to it."""

    def step(self) -> None:
        """Count one.  Raises `OutOfBudget`."""
        self.steps -= 1
        if self.steps < 0:
            raise OutOfBudget("the chat template takes too many steps for these messages")

    def check(self, value: Any, times: Any = 1) -> Any:
        """The value, unless it is a text that is too long, so many times over.

        Raises `OutOfBudget`.
        """
        sized = isinstance(value, str | list | tuple) and isinstance(times, int)
        if sized and len(value) * times > self.characters:
            raise OutOfBudget(
                f"the chat template makes more than {self.characters} characters of these messages"
            )
        return value

    def join(self, *values: Any) -> str:
        """What the operator `~` gives.  Raises `OutOfBudget`."""
        text: str = self.check("".join(map(str, values)))
        return text


AMPLE = Budget(steps=10_000_000, characters=64 << 20)
"""For who has no other bound."""


class ChatTemplate:
    """A compiled template, with the special tokens that it may name."""

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None) -> None:
        """Compile; raises `TemplateError` if it is no template."""
        self.source = source
        self._tokens = dict(tokens or {})
        try:
            self._template, self._read = _compile(source)
        except (jinja2.TemplateError, SyntaxError, RecursionError) as error:
            raise TemplateError(f"the chat template is not valid: {error}") from error

    @property
    def variables(self) -> frozenset[str]:
        """What the template reads beside what every template is given: no other value changes
        anything in a prompt."""
        return self._read - self._tokens.keys()

    @cached_property
    def words(self) -> frozenset[str]:
        """Names of attributes, and texts within expressions: what it may look for in messages."""
        tree = self._template.environment.parse(self.source)
        names = {node.attr for node in tree.find_all(nodes.Getattr)}
        texts = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        return frozenset(names | texts)

    def render(
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
        """The prompt.  `extra` are further variables of the template (`enable_thinking`...).

        Messages are shown to the template as they are; see `conversation` for what clients send.
        Raises `TemplateError`, and of that `OutOfBudget` where it takes too much.
        """
        budget = Budget(budget.steps, budget.characters)
        text = ""
        if continue_final_message:
            messages, text = _marked(messages)
        variables = {
            **self._tokens,
            **(extra or {}),
            "messages": messages,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
            _STEP: budget.step,
            _JOIN: budget.join,
            _CHECK: budget.check,
        }
        try:
            prompt = self._render(variables, budget)
        except OutOfBudget:
            raise
        except Exception as error:  # a template can fail in any way at all
            raise TemplateError(f"the chat template refused the messages: {error}") from error
        return _cut_at_mark(prompt, text) if continue_final_message else prompt

    def _render(self, variables: dict[str, Any], budget: Budget) -> str:
        pieces, left = [], budget.characters
        for piece in self._template.generate(variables):
            pieces.append(piece)
            left -= len(piece)
            if left < 0:
                budget.check("".join(pieces))
        return "".join(pieces)


_STEP, _JOIN, _CHECK = "shuntserve_step", "shuntserve_join", "shuntserve_check"
"""Variables that every template has: the methods of its budget."""
_SHORT = 1024
"""Characters of a text that is within any budget."""

_MARK = "SHUNTSERVE_CONTINUES_HERE"


def _marked(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """Mark the end of the last message, to find it in the prompt again; and the text before it."""
    copied: list[Any] = copy.deepcopy(list(messages))
    last = copied[-1] if copied else {}
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + _MARK + " "
        return copied, content
    for part in reversed(content if isinstance(content, list) else []):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            text: str = part["text"]
            part["text"] = text + _MARK + " "
            return copied, text
    raise TemplateError("there is no text in the last message to continue")


def _cut_at_mark(prompt: str, text: str) -> str:
    """The prompt to the mark; where the space behind it was trimmed, so is the text before it."""
    end = prompt.rfind(_MARK)
    if end < 0 or text.strip() not in prompt:
        raise TemplateError("the chat template does not show the end of the last message")
    whole = prompt[end + len(_MARK) :].startswith(" ")
    return prompt[:end] if whole else prompt[:end].rstrip()


class _Generation(Extension):
    """The `generation` block of training templates: rendered as if the tag were not there."""

    tags = {"generation"}  # noqa: RUF012 - the signature of Jinja's base class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Counted(NodeTransformer):
    """Has every round of a loop and every call of a macro counted, and joined texts measured."""

    def _count(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call(_STEP, []), lineno=node.lineno))
        return node

    visit_For = visit_Macro = visit_CallBlock = _count  # noqa: N815 - the base class finds them so

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call(_JOIN, node.nodes)


def _call(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load"), arguments, [], None, None)


class _Environment(ImmutableSandboxedEnvironment):
    """Has what a template does counted against the budget among its variables."""

    intercepted_binops = frozenset({"*", "**", "+"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _Counted().visit(template)
        template.set_environment(self)
        return template

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """As in any sandbox; what counts steps is ours and needs no look."""
        if type(called) is MethodType and type(called.__self__) is Budget:
            return called(*args)
        return super().call(context, called, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            value = left + right
            if isinstance(value, str) and len(value) < _SHORT:  # nearly all
                return value
            return (context.get(_CHECK) or AMPLE.check)(value)
        if operator == "**":
            raise TemplateError("chat templates may not raise to a power")
        check = context.get(_CHECK) or AMPLE.check
        check(left, right)
        check(right, left)
        return check(super().call_binop(context, operator, left, right))


@lru_cache(maxsize=16)
def _compile(source: str) -> tuple[jinja2.Template, frozenset[str]]:
    """The template, and the names of variables that it reads and does not set before."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    template = environment.from_string(source)
    # Of a chain of tables Jinja would make a new one for each prompt, name by name.
    template.globals = dict(template.globals)
    read = meta.find_undeclared_variables(environment.parse(source))
    return template, frozenset(read - {_STEP, _JOIN, _CHECK})


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
