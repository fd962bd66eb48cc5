"""The Hugging Face hub, asked by a process of its own that can be given up.

Its client retries for minutes, waits for ever on a silent server and on a resolver that hangs,
and prints as it goes.  None of that can be turned off from outside in every version, so the client
runs in a child: what it prints goes nowhere, and where nothing arrives it is ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import define, field, frozen

from shuntserve_core.errors import UserError

PATIENCE = 10.0
"""Seconds for the hub to say what the repository is."""
STALL = 30.0
"""Seconds in which nothing more of a file arrives."""
_START = 120.0
"""Seconds for the client to be imported; a cold disk of a small machine takes some."""
_REMEDIES = {
    "package": "pip install 'shuntserve[hub]'",
    "offline": "unset HF_HUB_OFFLINE",
    "gated": "accept its licence at {page}, and set HF_TOKEN to a token of that account",
    "token": "renew HF_TOKEN (or run `hf auth login` again)",
    "missing": "correct the name, or set HF_TOKEN to a token that may read it if it is private",
    "revision": "name a branch, tag or commit that {page}/tree/main lists",
    "entry": "see what it holds at {page}/tree/main",
    "rate": "try again later, or set HF_TOKEN: accounts may ask more often",
    "server": "try again later, or set HF_ENDPOINT to a mirror",
    "strange": "check HF_ENDPOINT and the proxy",
    "disk": "free some space there, or set HF_HOME to a place that this user may write to",
    "incomplete": "try again where the hub is in reach",
    "unreachable": "check the network, the proxy and HF_ENDPOINT",
}


class HubError(UserError):
    """Why the hub did not give what was asked; `kind` is a key of the remedies."""

    def __init__(self, kind: str, reason: str, page: str) -> None:
        super().__init__(reason, remedy=_REMEDIES[kind].format(page=page))
        self.kind = kind


@frozen
class Asked:
    """Files of a repository."""

    repository: str
    revision: str | None = None
    patterns: Sequence[str] = ()
    """Of the names of files wanted."""
    endpoint: str | None = None
    """None for the client's own default, HF_ENDPOINT or the hub."""


def fetch(asked: Asked, *, patience: float = PATIENCE, stall: float = STALL) -> Path:
    """The folder of the hub's cache with these files, fetched unless they are there.

    Raises `HubError`, within `patience` seconds where the hub cannot be reached, and `stall`
    seconds after the last byte where it ceases to answer.  What is in the cache is used whatever
    keeps the hub from answering.
    """
    child = _Child(asked, patience, stall)
    answer = child.run(online=True)
    if answer.get("silent"):
        cached = child.run(online=False)
        answer = cached if "path" in cached else answer
    if "path" in answer:
        return Path(answer["path"])
    page = f"{child.endpoint.rstrip('/')}/{asked.repository}"
    raise HubError(answer["kind"], _one_line(answer["reason"]), page)


@define
class _Child:
    asked: Asked
    patience: float
    stall: float
    endpoint: str = field(default="https://huggingface.co", init=False)
    _cache: Path | None = field(default=None, init=False)
    _said: str = field(default="", init=False)
    _status: int = field(default=0, init=False)

    def run(self, *, online: bool) -> dict[str, Any]:
        asked = self.asked
        request = {
            "repository": asked.repository,
            "revision": asked.revision,
            "patterns": list(asked.patterns),
            "endpoint": asked.endpoint,
            "online": online,
            "patience": self.patience,
        }
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "shuntserve_core.hub"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin, process.stdout:
            try:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(request).encode())
                    process.stdin.close()
                return self._listen(process.stdout.fileno())
            finally:
                process.kill()
                process.wait()

    def _listen(self, pipe: int) -> dict[str, Any]:
        limit, last = _START, time.monotonic()
        seen: object = None
        for lines in _lines(pipe):
            for line in lines:
                if line.keys() & {"path", "kind"}:
                    return line
                if "endpoint" in line:  # the client is there, and asks
                    self.endpoint, self._cache = line["endpoint"], Path(line["cache"])
                    limit, last = self.patience, time.monotonic()
                elif "found" in line:
                    limit, last = self.stall, time.monotonic()
                if "status" in line:  # the client tries again by itself, which may last
                    self._status, limit = line["status"], min(limit, self.patience)
                self._said = line.get("said", self._said)
            if limit == self.stall and (now := self._state()) != seen:
                seen, last = now, time.monotonic()
            if time.monotonic() - last > limit:
                return self._silence(limit)
        return {"kind": "strange", "reason": self._said or "its client ended without a word"}

    def _silence(self, limit: float) -> dict[str, Any]:
        host = urlsplit(self.endpoint).netloc or self.endpoint
        if self._status:
            kind = "rate" if self._status == 429 else "server"
            reason = f"{host} goes on answering HTTP {self._status}"
        else:
            kind = "unreachable"
            why = f" ({self._said})" if self._said else ""
            reason = f"{host} does not answer: nothing came for {limit:g} s{why}"
        return {"kind": kind, "reason": reason, "silent": True}

    def _state(self) -> object:
        """What changes while anything of the repository arrives."""
        folder = "models--" + self.asked.repository.replace("/", "--")
        if self._cache is None:
            return None
        found = []
        for path in (self._cache / folder).rglob("*"):
            with contextlib.suppress(OSError):
                facts = path.lstat()
                found.append((facts.st_ino, facts.st_size, facts.st_blocks, facts.st_mtime_ns))
        return sorted(found)


def _lines(pipe: int) -> Iterator[list[dict[str, Any]]]:
    """Documents as they come, or none twice a second; ends with the pipe."""
    rest = b""
    while True:
        if not select.select([pipe], [], [], 0.5)[0]:
            yield []
            continue
        data = os.read(pipe, 1 << 16)
        if not data:
            return
        *whole, rest = (rest + data).split(b"\n")
        yield [json.loads(line) for line in whole]


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
