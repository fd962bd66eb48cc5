"""Processes that end otherwise than in order, and go on writing to what they had leased."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shuntserve_core.tensorstore import StoreClient
from shuntserve_core.tensorstore.peer import Peer
from shuntserve_core.tensorstore.spec import KvUnavailable, TensorStoreError
from shuntserve_core.tensorstore.views import KvRange
from shuntserve_core.testing.cuda import FakeCard
from tests.core.tensorstore.processes import CARD_CHUNK, StoreProcess

NBYTES = 2 * CARD_CHUNK
LEAVES = "client.close(); print('left', flush=True)\n"
WRITES = "for line in sys.stdin: write(addresses, int(line)); print('wrote', flush=True)\n"
FORKS = "if os.fork(): print('left', flush=True); os.kill(os.getpid(), 9)\n"


class Writer:
    """A process that has KV memory, does something, and then writes when it is told to."""

    def __init__(self, store: StoreProcess, acts: str) -> None:
        code = store.client_code + f"addresses = own({NBYTES}); write(addresses, 1)\n"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code + acts + WRITES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == "left\n"

    def write(self, mark: int) -> None:
        assert self._process.stdin
        assert self._process.stdout
        print(mark, file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "wrote\n"

    def end(self) -> None:
        self._process.communicate()


@contextmanager
def store_on(
    where: str, tmp_path: Path, dying_seconds: float, nbytes: int = 16 * CARD_CHUNK
) -> Iterator[tuple[StoreProcess, StoreClient]]:
    card = FakeCard(nbytes=nbytes) if where == "card" else None
    arguments = ("--dying-seconds", str(dying_seconds))
    with (
        StoreProcess(tmp_path / "store.sock", *arguments, card=card) as store,
        StoreClient(store.socket) as client,
    ):
        yield store, client


def until_leaving(client: StoreClient) -> None:
    while not any(lease.leaving for lease in client.stats().leases):
        pass


def until_left(client: StoreClient) -> None:
    while client.stats().leases:
        pass


@pytest.mark.parametrize("where", ["host", "card"])
def test_memory_is_lent_on_only_when_its_owner_has_exited(where: str, tmp_path: Path) -> None:
    with store_on(where, tmp_path, dying_seconds=100) as (store, client):
        writer = Writer(store, LEAVES)
        until_leaving(client)
        for mark in range(3):
            writer.write(mark)
            with pytest.raises(KvUnavailable, match="owned by dying"):
                client.kv_lease("next", NBYTES, wait=False)
        before = client.stats().memory.kv
        writer.end()
        lease = client.kv_lease("next", NBYTES, timeout=60)
        kv = KvRange(NBYTES, memory=store.memory)
        kv.own(lease)
        assert not kv.tensor.any()
        assert client.stats().memory.kv == before  # the same memory, emptied
        kv.close()
        client.release(lease)


@pytest.mark.parametrize("where", ["host", "card"])
@pytest.mark.parametrize("acts", [LEAVES, FORKS], ids=["lives", "child"])
def test_memory_of_who_lives_on_is_not_lent_again(where: str, acts: str, tmp_path: Path) -> None:
    """It, or a child that holds its connection, goes on writing where nobody else looks."""
    with store_on(where, tmp_path, dying_seconds=0.05) as (store, client):
        writer = Writer(store, acts)
        until_left(client)
        lease = client.kv_lease("next", NBYTES, timeout=60)
        kv = KvRange(NBYTES, memory=store.memory)
        kv.own(lease)
        for mark in range(1, 4):
            writer.write(mark)
            assert not kv.tensor.any()
        held = client.stats().memory
        if store.card is not None:
            assert held.device_free is not None
            assert store.card.nbytes - held.device_free == held.allocated + NBYTES
        writer.end()
        if store.card is not None:
            assert client.stats().memory.device_free == store.card.nbytes - held.allocated
        kv.close()
        client.release(lease)
        store.process.kill()
        assert store.process.stderr
        assert "left without releasing the KV memory of dying" in store.process.stderr.read()


def test_what_does_not_come_back_in_time_is_missed_in_one_line(tmp_path: Path) -> None:
    with store_on("card", tmp_path, dying_seconds=0.05, nbytes=NBYTES) as (store, client):
        writer = Writer(store, LEAVES)
        until_left(client)
        with pytest.raises(TensorStoreError, match=f"no room for {CARD_CHUNK} bytes: 0 of"):
            client.kv_lease("next", NBYTES, timeout=0.2)
        assert client.stats().leases == ()
        writer.end()
        lease = client.kv_lease("next", NBYTES)
        assert client.stats().memory.kv == NBYTES
        client.release(lease)


def test_a_peer_is_gone_when_process_and_connection_are() -> None:
    ours, theirs = socket.socketpair()
    peer = Peer(ours)  # of this process, which lives
    assert not peer.gone(0)
    theirs.send(b"x")
    assert peer.wait_for_message()
    theirs.close()
    assert not peer.gone(0)
    peer.close()
    ours.close()


def test_nothing_is_known_of_a_peer_without_a_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peer, "_open", lambda self: -1)
    ours, theirs = socket.socketpair()
    peer = Peer(ours)
    theirs.close()
    assert peer.wait_for_message()  # the end of the connection is still heard
    assert not peer.gone(0)
    peer.close()
    ours.close()
