"""Rank 0 and the others, over connections that strangers have no part in."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from shuntserve_plugins.engines.peers import LENGTH, Closed, framed
from shuntserve_plugins.engines.vllm import control
from shuntserve_plugins.engines.vllm.control import Hub, RankError, Silence, Spoke, keep_alive


class Plain:
    """Values as msgpack has them: what vLLM's look like is another test."""

    def packed(self, value: Any) -> bytes:
        return bytes(msgpack.packb(value))

    def unpacked(self, data: bytes | bytearray) -> Any:
        return msgpack.unpackb(data)


class Bomb:
    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return os.mknod, (str(self._file),)


class Ends:
    """Why processes would have ended, instead of ending this one; and all connections."""

    def __init__(self) -> None:
        self.reasons: list[Exception] = []
        self.sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def or_end(self, watch: Callable[[], None]) -> None:
        def run() -> None:
            try:
                watch()
            except Exception as error:  # what a process ends of
                self.reasons.append(error)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def close(self) -> None:
        """Nothing that watches goes on."""
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        for one in self.sockets:
            one.close()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    ends = Ends()

    def kept(sock: socket.socket, silence: Silence) -> None:
        ends.sockets.append(sock)
        keep_alive(sock, silence)

    monkeypatch.setattr(control, "_or_end", ends.or_end)
    monkeypatch.setattr(control, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr(control, "keep_alive", kept)
    yield ends
    ends.close()


class Pair:
    """Rank 0, and rank 1, which adds, in a thread once that is started."""

    def __init__(self, ends: Ends) -> None:
        self.hub = Hub("127.0.0.1:0", "secret", 1)
        self.error: Exception | None = None
        self.serving = threading.Thread(target=self._serve, daemon=True)
        silence = Silence(60.0)
        spokes: list[Spoke] = []
        meeting = threading.Thread(
            target=lambda: spokes.append(Spoke(self.hub.address, "secret", 1, silence))
        )
        meeting.start()
        self.hub.accept(silence)
        meeting.join(30)
        (self.spoke,) = spokes
        ends.sockets += [*self.hub._calls.values(), *self.hub.meetings.values()]
        ends.sockets += [self.spoke._calls, self.spoke.meeting]
        self.hub.speak(Plain())

    def _serve(self) -> None:
        try:
            self.spoke.serve(Plain(), lambda method, args, kwargs: getattr(self, method)(*args))
        except Exception as error:  # what rank 1 ends of
            self.error = error

    def add(self, a: int, b: int) -> int:
        return a + b

    def fail(self) -> None:
        raise ValueError("no")


def test_calls_are_answered_in_order_and_failures_are_told(ends: Ends) -> None:
    pair = Pair(ends)
    pair.serving.start()
    answers = [pair.hub.call("add", (1, number), {}, None)[1] for number in range(3)]
    assert [answer.result(30) for answer in answers] == [1, 2, 3]
    assert pair.hub.call("add", (1, 1), {}, {2}) == {}
    with pytest.raises(RankError, match="rank 1: ValueError: no"):
        pair.hub.call("fail", (), {}, None)[1].result(30)
    assert not ends.reasons
    pair.hub._calls[1].shutdown(socket.SHUT_RDWR)
    pair.serving.join(30)
    assert pair.error is None  # rank 0 has gone: a rank ends in good order


def test_a_failure_that_nobody_waits_for_ends_the_engine(ends: Ends) -> None:
    pair = Pair(ends)
    pair.serving.start()
    assert pair.hub.call("fail", (), {}, set()) == {}
    until(lambda: bool(ends.reasons))
    assert str(ends.reasons[0]) == "rank 1: ValueError: no"


def test_a_pickle_ends_either_side_and_is_not_run(ends: Ends, tmp_path: Path) -> None:
    bomb = framed(pickle.dumps(Bomb(tmp_path / "ran")))
    pair = Pair(ends)
    pair.spoke._calls.sendall(bomb)
    until(lambda: bool(ends.reasons))
    assert isinstance(ends.reasons[0], ValueError)
    pair.hub._calls[1].sendall(bomb)
    pair.serving.start()
    pair.serving.join(30)
    assert isinstance(pair.error, ValueError)
    assert not (tmp_path / "ran").exists()


def test_calls_that_are_too_long_are_not_made_room_for(ends: Ends) -> None:
    pair = Pair(ends)
    pair.hub._calls[1].sendall(LENGTH.pack((1 << 30) + 1))
    pair.serving.start()
    pair.serving.join(30)
    assert str(pair.error) == "it announced 1073741825 bytes"


def test_silence_is_noticed(ends: Ends) -> None:
    ours, theirs = socket.socketpair()
    ends.sockets += [ours, theirs]
    keep_alive(ours, Silence(0.1, 0.1))
    until(lambda: bool(ends.reasons))
    assert str(ends.reasons[0]) == "nothing heard for 0 s"


def test_an_end_is_noticed(ends: Ends) -> None:
    ours, theirs = socket.socketpair()
    ends.sockets.append(ours)
    keep_alive(ours, Silence(60.0))
    theirs.close()
    until(lambda: bool(ends.reasons))
    assert isinstance(ends.reasons[0], (Closed, ConnectionError))


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody announces."""
    event = threading.Event()
    for _ in range(600):
        if condition():
            return
        event.wait(0.05)
    raise AssertionError("it did not happen")
