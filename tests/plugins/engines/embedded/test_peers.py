"""Strangers at the place where an engine's ranks meet."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from shuntserve_plugins.engines.embedded import peers
from shuntserve_plugins.engines.embedded.peers import PeerListener, PeerLost, connect, receive, send


def test_strangers_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_PROOF_SECONDS", 0.5)
    listener = PeerListener("127.0.0.1:0", "secret", 8)
    host, _, port = listener.address.rpartition(":")
    strangers = [socket.create_connection((host, int(port))) for _ in range(4)]
    strangers[0].sendall(struct.pack("<I", 64 << 20))  # much to make room for
    strangers[1].sendall(b"\x05")  # a byte, and no more
    strangers[2].sendall(b"GET / HTTP/1.1\r\n\r\n")
    inside: dict[int, socket.socket] = {}
    accepting = threading.Thread(target=lambda: inside.update(listener.accept([1])), daemon=True)
    accepting.start()
    joined = connect(listener.address, "secret", 1)
    accepting.join(30)
    assert list(inside) == [1]
    for one in (*strangers, joined, *inside.values()):
        one.close()


def test_what_a_stranger_may_send_is_short_and_comes_soon() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(struct.pack("<I", 1 << 30))
        with pytest.raises(PeerLost, match="it announced 1073741824 bytes"):
            receive(ours, longest=256)
        theirs.sendall(struct.pack("<I", 9) + b"12345678")
        with pytest.raises(PeerLost, match="timed out"):
            receive(ours, longest=256, deadline=0.0)


def listening(answer: Callable[[socket.socket], None]) -> str:
    """The address of somebody who answers the next connection so."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        sock, _ = listener.accept()
        with listener, sock:
            answer(sock)

    threading.Thread(target=accept, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


def test_who_listens_without_the_token_gets_no_rank() -> None:
    def pretend(sock: socket.socket) -> None:
        send(sock, b"n" * 16)
        _, _, proof = receive(sock)
        send(sock, proof)  # what it was sent

    with pytest.raises(PeerLost, match="does not know the token"):
        connect(listening(pretend), "secret", 1)


@pytest.mark.parametrize("greeting", [b"short", 7, [1], "n" * 16])
def test_who_greets_in_another_way_is_no_rank(greeting: Any) -> None:
    with pytest.raises(PeerLost, match="is no rank"):
        connect(listening(lambda sock: send(sock, greeting)), "secret", 1)


def test_what_one_rank_proved_lets_nobody_else_in() -> None:
    """Proofs hold for one connection and one rank."""
    listener = PeerListener("127.0.0.1:0", "secret", 8)
    host, _, port = listener.address.rpartition(":")
    inside: dict[int, socket.socket] = {}
    accepting = threading.Thread(target=lambda: inside.update(listener.accept([1])), daemon=True)
    accepting.start()
    heard: list[Any] = []

    def record(sock: socket.socket) -> None:
        with socket.create_connection((host, int(port))) as real:
            send(sock, receive(real))
            heard.append(receive(sock))
            rank, own, proof = heard[0]
            send(real, (rank + 1, own, proof))
            with pytest.raises(PeerLost):
                receive(real)

    with pytest.raises(PeerLost):
        connect(listening(record), "secret", 1)
    with socket.create_connection((host, int(port))) as again:
        receive(again)
        send(again, heard[0])
        with pytest.raises(PeerLost):
            receive(again)
    joined = connect(listener.address, "secret", 1)
    accepting.join(30)
    assert list(inside) == [1]
    for one in (joined, *inside.values()):
        one.close()
