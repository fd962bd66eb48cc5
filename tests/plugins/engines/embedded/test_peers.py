"""Strangers at the place where an engine's ranks meet."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from shuntserve_plugins.engines.embedded import peers
from shuntserve_plugins.engines.embedded.peers import Door, PeerLost, knock, receive


def test_strangers_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_PROOF_SECONDS", 0.5)
    door = Door("127.0.0.1:0", "secret", 8)
    host, _, port = door.address.rpartition(":")
    strangers = [socket.create_connection((host, int(port))) for _ in range(4)]
    strangers[0].sendall(struct.pack("<I", 64 << 20))  # much to make room for
    strangers[1].sendall(b"\x05")  # a byte, and no more
    strangers[2].sendall(b"GET / HTTP/1.1\r\n\r\n")
    inside: dict[int, socket.socket] = {}
    admitting = threading.Thread(target=lambda: inside.update(door.admit([1])), daemon=True)
    admitting.start()
    joined = knock(door.address, "secret", 1)
    admitting.join(30)
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
