"""What the scripts beside it share; they run in an environment of clients, without pytest."""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

Check = Callable[[dict[str, str]], Any]
MODEL = "org/tiny"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "title": "answer",
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
TOOL = {
    "type": "function",
    "function": {"name": "reply", "description": "Reply.", "parameters": SCHEMA},
}
TEXT = "one two three"
"""What the server says to everything that is not constrained."""
JSON = {"answer": "yes"}
"""What it says under a constraint."""


def raises(expected: type[BaseException], call: Callable[[], Any]) -> Any:
    """The exception of a call; it must be of that class exactly, or of one below it."""
    try:
        answer = call()
    except expected as error:
        return error
    raise AssertionError(f"no {expected.__name__}, but {answer!r}")


def run(coroutine: Any) -> Any:
    """The result of a coroutine."""
    return asyncio.run(coroutine)


def main(*checks: Check) -> None:
    """Do every check, and print what came of each by its name."""
    urls = json.loads(sys.argv[1])
    said: dict[str, str] = {}
    for check in checks:
        name = check.__name__.replace("_", " ").replace("json", "JSON")
        try:
            check(urls)
            said[name] = "yes"
        except Exception as error:
            traceback.print_exc()
            said[name] = f"{type(error).__name__}: {error}"[:500]
    print(json.dumps(said))  # noqa: T201 - this is how it answers
