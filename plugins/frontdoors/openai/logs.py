"""One JSON object a request on the logger `shuntserve.access`; never any text of a request."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import msgspec

ACCESS = "shuntserve.access"


class Entry:
    """A log message that is JSON only if somebody reads it."""

    __slots__ = ("fields",)

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def __str__(self) -> str:
        """One line of JSON, without the fields that are None."""
        known = {name: value for name, value in self.fields.items() if value is not None}
        return msgspec.json.encode(known).decode()


def access_handler(target: str) -> logging.Handler | None:
    """A handler that writes lines to `stderr`, `stdout` or a file; None for an empty target."""
    if not target:
        return None
    streams = {"stderr": sys.stderr, "stdout": sys.stdout}
    handler: logging.Handler
    if target in streams:
        handler = logging.StreamHandler(streams[target])
    else:
        # Made for its owner alone; one that is there stays as it is.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        handler = logging.FileHandler(target, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler
