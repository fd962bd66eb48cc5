"""Strangers at the place where an engine's ranks meet."""

from __future__ import annotations

import pickle
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_plugins.engines import arrivals
from shuntserve_plugins.engines.arrivals import PeerListener
from shuntserve_plugins.engines.peers import (
    CONNECTS,
    REFUSED,
    Closed,
    PeerLost,
    connect,
    proof_of,
    receive,
    send,
)

PLACES = [(1, "control"), (2, "control"), (2, "life")]


class Reception:
    """A listener with the token `secret`, waiting for `PLACES` in a thread."""

    def __init__(self) -> None:
        self.listener = PeerListener("127.0.0.1:0", "secret", 2)
        self.address = self.listener.address
        self.inside: dict[Any, socket.socket] = {}
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        self.inside |= self.listener.accept(PLACES)

    def stranger(self) -> socket.socket:
        """Somebody who has connected."""
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=30)

    def fill(self) -> None:
        """Have everybody come who is awaited."""
        joined = [connect(self.address, "secret", *place) for place in PLACES]
        self._thread.join(30)
        assert set(self.inside) == set(PLACES)
        for place, sock in zip(PLACES, joined, strict=True):
            send(sock, place)
            assert receive(self.inside[place]) == list(place)
        for one in joined:
            one.close()
        self.close()

    def close(self) -> None:
        """Close the connections of those who are inside."""
        for one in self.inside.values():
            one.close()


@pytest.fixture
def reception(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reception]:
    """Where a handshake may take longer than a test: nobody waits for the end of one."""
    monkeypatch.setattr(arrivals, "PROOF_SECONDS", 1000.0)
    reception = Reception()
    yield reception
    reception.close()


@pytest.fixture
def strangers() -> Iterator[list[socket.socket]]:
    """Closed in the end."""
    everybody: list[socket.socket] = []
    yield everybody
    for one in everybody:
        one.close()


SILENT, SLOW, LONG, WEB = b"", b"\x05", struct.pack("<I", 64 << 20), b"GET / HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("count", [4, 3 * arrivals.MOST_UNDER_WAY])
def test_strangers_hold_nobody_up(
    count: int, reception: Reception, strangers: list[socket.socket]
) -> None:
    """Ranks do not wait for the end of anybody's handshake, which is after the test's."""
    for number in range(count):
        one = reception.stranger()
        strangers.append(one)
        one.sendall((SILENT, SLOW, LONG, WEB)[number % 4])
    reception.fill()


def test_strangers_that_come_all_the_time_hold_nobody_up(reception: Reception) -> None:
    done = threading.Event()

    def come() -> None:
        kept: list[socket.socket] = []
        while not done.is_set():
            try:
                kept.append(reception.stranger())
            except OSError:  # the listener has closed
                break
            if len(kept) > 200:
                kept.pop(0).close()
        for one in kept:
            one.close()

    threads = [threading.Thread(target=come) for _ in range(2)]
    for thread in threads:
        thread.start()
    reception.fill()
    done.set()
    for thread in threads:
        thread.join(30)


def test_no_more_than_so_many_are_under_way(
    reception: Reception, strangers: list[socket.socket]
) -> None:
    """The oldest makes room."""
    for _ in range(arrivals.MOST_UNDER_WAY + 2):
        strangers.append(reception.stranger())
        receive(strangers[-1])  # it was greeted: its place is taken
    for one in strangers[:2]:
        with pytest.raises(Closed):
            receive(one)
    strangers[2].settimeout(0.05)
    with pytest.raises(PeerLost, match="timed out"):
        receive(strangers[2])
    reception.fill()


def test_a_handshake_ends(monkeypatch: pytest.MonkeyPatch, strangers: list[socket.socket]) -> None:
    """Also for one that sends a byte now and then."""
    monkeypatch.setattr(arrivals, "PROOF_SECONDS", 0.2)
    reception = Reception()
    slow = reception.stranger()
    strangers.append(slow)
    receive(slow)
    slow.sendall(struct.pack("<I", 255))
    with pytest.raises(ConnectionError):
        say_slowly(slow)
    reception.fill()


def say_slowly(sock: socket.socket) -> None:
    for _ in range(250):
        sock.sendall(b"\x01")
        time.sleep(0.05)


def test_waiting_for_ranks_ends(strangers: list[socket.socket]) -> None:
    listener = PeerListener("127.0.0.1:0", "secret", 2)
    host, _, port = listener.address.rpartition(":")
    strangers.append(socket.create_connection((host, int(port))))
    with pytest.raises(PeerLost, match="ranks 1, 2 did not come within 0 s"):
        listener.accept(PLACES, seconds=0.2)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))


def test_what_a_stranger_may_send_is_short_and_comes_soon() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(struct.pack("<I", 1 << 30))
        with pytest.raises(PeerLost, match="it announced 1073741824 bytes"):
            receive(ours, longest=256)
        theirs.sendall(struct.pack("<I", 9) + b"12345678")
        with pytest.raises(PeerLost, match="timed out"):
            receive(ours, longest=256, deadline=0.0)


def claim(*words: Any) -> bytes:
    return bytes(msgpack.packb(words))


NUMBER, PROOF = b"n" * 16, b"p" * 32
LIES = {
    "a pickle": pickle.dumps((1, "control")),
    "no list": msgpack.packb(7),
    "a list as a key": msgpack.packb({}) + b"\x81\x90\x01",
    "too few words": claim(1, "control"),
    "no proof": claim(1, "control", NUMBER, None),
    "text as a proof": claim(1, "control", NUMBER, "p"),
    "no number": claim(1, "control", b"", PROOF),
    "no rank": claim("1", "control", NUMBER, PROOF),
    "true as a rank": claim(True, "control", NUMBER, PROOF),
    "no purpose": claim(1, None, NUMBER, PROOF),
    "a wrong proof": claim(1, "control", NUMBER, PROOF),
    "more than it announced": claim(1, "control", NUMBER, PROOF) + b"more",
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_liars_are_turned_away(
    lie: bytes, reception: Reception, strangers: list[socket.socket]
) -> None:
    one = reception.stranger()
    strangers.append(one)
    receive(one)
    one.sendall(struct.pack("<I", len(lie)) + lie)
    turned_away(one)
    reception.fill()


def turned_away(one: socket.socket) -> None:
    """At most by a word."""
    with pytest.raises(PeerLost):
        receive_behind(one, REFUSED)


def receive_behind(one: socket.socket, word: bytes) -> None:
    while receive(one) == word:
        pass


@given(st.lists(st.binary(max_size=300), max_size=4))
@settings(max_examples=60, deadline=None)
def test_whatever_is_said_nobody_gets_in(said: list[bytes]) -> None:
    reception = Reception()
    with reception.stranger() as one:
        nonce = receive(one)
        assert len(nonce) == 16
        try:
            for data in said:
                one.sendall(data)
        except ConnectionError:
            pass
        assert not reception.inside
        reception.fill()


def test_nobody_comes_twice_nor_where_nobody_is_awaited(
    reception: Reception, strangers: list[socket.socket]
) -> None:
    strangers.append(connect(reception.address, "secret", 1, "control"))
    for place in ((1, "control"), (3, "control"), (1, "life")):
        with pytest.raises(PeerLost, match=r"refuses this rank \(\d, "):
            connect(reception.address, "secret", *place)
    strangers.extend(connect(reception.address, "secret", *place) for place in PLACES[1:])


def test_who_does_not_know_the_token_is_told_at_once(reception: Reception) -> None:
    with pytest.raises(PeerLost, match="refuses this rank"):
        connect(reception.address, "guess", 1, "control")
    reception.fill()


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
        send(sock, NUMBER)
        *_, proof = receive(sock)
        send(sock, proof)  # what it was sent

    with pytest.raises(PeerLost, match="does not know the token"):
        connect(listening(pretend), "secret", 1, "control")


@pytest.mark.parametrize("greeting", [b"short", 7, [1], "n" * 16])
def test_who_greets_in_another_way_is_no_rank(greeting: Any) -> None:
    with pytest.raises(PeerLost, match="is no rank"):
        connect(listening(lambda sock: send(sock, greeting)), "secret", 1, "control")


def test_a_connection_that_is_dropped_is_tried_again(
    reception: Reception, strangers: list[socket.socket]
) -> None:
    """As for somebody who came when all places were taken."""
    listener = socket.create_server(("127.0.0.1", 0))
    dropped = threading.Event()

    def drop_one_and_pass_the_next_on() -> None:
        listener.accept()[0].close()
        dropped.set()
        sock, _ = listener.accept()
        there = reception.stranger()
        strangers.extend((sock, there, listener))
        send(sock, receive(there))
        send(there, receive(sock))
        send(sock, receive(there))

    threading.Thread(target=drop_one_and_pass_the_next_on, daemon=True).start()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    strangers.append(connect(address, "secret", 1, "control"))
    assert dropped.is_set()


@pytest.mark.parametrize("place", [(2, "control"), (1, "life")])
def test_what_one_rank_proved_lets_nobody_else_in(
    place: tuple[int, str], reception: Reception
) -> None:
    """Proofs hold for one connection, one rank and one purpose."""
    heard: list[Any] = []

    def record(sock: socket.socket) -> None:
        with reception.stranger() as real:
            send(sock, receive(real))
            heard.append(receive(sock))
            _, _, own, proof = heard[0]
            send(real, (*place, own, proof))
            turned_away(real)

    with pytest.raises(PeerLost):
        connect_once(listening(record))
    with reception.stranger() as again:
        receive(again)
        send(again, heard[0])
        turned_away(again)
    reception.fill()


def connect_once(address: str) -> None:
    """As rank 1 does, without another try."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as sock:
        nonce = receive(sock)
        send(
            sock,
            (1, "control", NUMBER, proof_of(b"secret", CONNECTS, nonce, NUMBER, (1, "control"))),
        )
        receive(sock)
