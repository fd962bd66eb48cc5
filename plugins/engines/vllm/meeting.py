"""How the ranks of an engine tell each other where their collectives' sockets are.

torch's own store for that asks nobody for a secret.  Here rank 0 keeps it in its memory, and the
other ranks reach it over connections of `control`, which are authenticated: nothing listens for it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import psutil
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from shuntserve_plugins.engines.peers import PeerLost, receive, send

_MOST_BYTES = 16 << 20
"""Of one question or answer; an address takes some hundred."""
_SOONEST, _LATEST = 0.001, 0.02
"""Seconds between looks at a key that is not there yet."""
_QUESTIONS = frozenset(("set", "get", "add", "check", "compare_set", "delete_key", "num_keys"))


class StoreTimeout(Exception):
    """No rank has set a key that others wait for."""


def serve_store(store: HashStore, ranks: Iterable[socket.socket]) -> None:
    """Answer the other ranks' questions from now on."""
    for sock in ranks:
        threading.Thread(target=_answer, args=(store, sock), daemon=True).start()


def _answer(store: HashStore, sock: socket.socket) -> None:
    with sock, contextlib.suppress(PeerLost):  # the lifeline ends the process
        while True:
            question, *arguments = receive(sock, longest=_MOST_BYTES)
            send(sock, _ask(store, question, arguments))


def _ask(store: HashStore, question: str, arguments: list[Any]) -> Any:
    """Never waits: a key that is not there is None."""
    if question not in _QUESTIONS:
        raise PeerLost(f"a rank asked for {question!r}")
    if question == "get" and not store.check(arguments):
        return None
    return getattr(store, question)(*arguments)


class RankStore(Store):
    """The store of rank 0, as the other ranks see it.  Any thread may use it."""

    def __init__(self, rank_0: socket.socket) -> None:
        super().__init__()
        self._rank_0 = rank_0
        self._lock = threading.Lock()

    def set(self, key: str, value: str | bytes) -> None:
        """Give a key a value."""
        self._ask("set", key, value)

    def get(self, key: str) -> bytes:
        """A key's value, once it has one.  Raises `StoreTimeout`."""
        self.wait([key])
        value: bytes = self._ask("get", key)
        return value

    def add(self, key: str, number: int) -> int:
        """Add to a counter; what it is then."""
        return int(self._ask("add", key, number))

    def check(self, keys: list[str]) -> bool:
        """Whether all have a value."""
        return bool(self._ask("check", keys))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Set a key that has the expected value; its value then."""
        value: bytes = self._ask("compare_set", key, expected, desired)
        return value

    def delete_key(self, key: str) -> bool:
        """Whether it was there."""
        return bool(self._ask("delete_key", key))

    def num_keys(self) -> int:
        """How many have a value."""
        return int(self._ask("num_keys"))

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Until all have a value.  Raises `StoreTimeout`."""
        limit: timedelta = self.timeout if timeout is None else timeout  # type: ignore[attr-defined]
        deadline, pause = time.monotonic() + limit.total_seconds(), _SOONEST
        while not self.check(keys):
            if time.monotonic() > deadline:
                raise StoreTimeout(f"no rank has set {', '.join(keys)}")
            time.sleep(pause)
            pause = min(2 * pause, _LATEST)

    def clone(self) -> RankStore:
        """Itself: it may be used by any thread."""
        return self

    # What torch calls from C++ under other names.
    deleteKey = delete_key  # noqa: N815
    getNumKeys = num_keys  # noqa: N815

    def _ask(self, *question: Any) -> Any:
        with self._lock:
            send(self._rank_0, question)
            return receive(self._rank_0, longest=_MOST_BYTES)


def listen_on(host: str) -> None:
    """Have gloo and NCCL listen where the engine's address is, unless the environment says where.

    Left to themselves they take the address that the machine's name stands for, or any.
    """
    address = socket.gethostbyname(host) if ":" not in host else host
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")
            return
