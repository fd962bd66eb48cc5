"""Client and server over a real socket: what is sent arrives, and every end is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve

from shuntserve_core.interfaces.link import READY, STANDBY, LinkLost, RequestRefused
from shuntserve_core.link import LinkClient, LinkPolicy, LinkServer
from shuntserve_core.link.frames import FrameDecoder, encode
from shuntserve_core.link.handshake import VERSION, Handshake
from shuntserve_core.types.features import EVERY_FEATURE, Feature
from shuntserve_core.types.request import (
    EngineInfo,
    EngineLoad,
    EngineRequest,
    SamplingParams,
    StepOutput,
    TokenLogprob,
)

FEATURES = EVERY_FEATURE - {Feature.TOP_K}
INFO = EngineInfo("e1", "fake", "tiny", 4, 128, FEATURES)
TOKEN = "xyzzy-plugh"
FAST = LinkPolicy(interval=0.03, missed=4, missed_while_starting=4, client_silence=0.3)


class Recorder:
    """A handler that keeps what it hears."""

    def __init__(self) -> None:
        self.requests: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.server: LinkServer | None = None
        self.threads: set[str] = set()

    def submit(self, request: EngineRequest) -> None:
        self.threads.add(threading.current_thread().name)
        if len(request.prompt) > 100:
            raise RequestRefused("too long")
        if request.prompt == (666,):
            raise RuntimeError("bug in the engine")
        self.requests.append(request)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def activate(self) -> None:
        assert self.server is not None
        self.server.announce(READY)

    def load(self) -> EngineLoad:
        return EngineLoad(3, 2, 0.5, 77, 5, 600, 40)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def server(recorder: Recorder) -> Iterator[LinkServer]:
    with LinkServer(INFO, recorder, TOKEN, FAST) as server:
        recorder.server = server
        yield server


def request(name: str, *prompt: int, **sampling: object) -> EngineRequest:
    return EngineRequest(name, prompt or (1, 2), SamplingParams(**({"max_tokens": 8} | sampling)))  # type: ignore[arg-type]


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread does."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - another thread sets no event of this loop
            await asyncio.sleep(0.005)


async def end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_request_arrives_whole(server: LinkServer, recorder: Recorder) -> None:
    link = await LinkClient.connect(server.start(), TOKEN)
    sent = EngineRequest(
        "r",
        (0, 1, 2**32 - 1),
        SamplingParams(
            max_tokens=9,
            min_tokens=2,
            temperature=0.5,
            seed=2**63,
            logit_bias={5: -1.5},
            stop_token_ids=(7, 8),
            logprobs=0,
            guided={"json_schema": {"type": "object", "n": [1, 2.5, None, True]}},
        ),
        output=(3, 4),
    )
    link.submit(sent, lambda output: None)
    await until(lambda: recorder.requests)
    (got,) = recorder.requests
    assert (got.id, got.prompt, got.output) == ("1:r", sent.prompt, sent.output)
    guided = {"json_schema": {"type": "object", "n": (1, 2.5, None, True)}}
    assert got.sampling.guided == guided
    assert got.sampling.logit_bias == {5: -1.5}
    assert got.sampling.seed == 2**63
    assert recorder.threads == {"link"}
    assert link.info == INFO
    link.close()


async def test_what_an_engine_did_not_declare_never_reaches_it(
    server: LinkServer, recorder: Recorder
) -> None:
    link = await LinkClient.connect(server.start(), TOKEN)
    heard: list[StepOutput] = []
    link.submit(request("r", temperature=0.5, top_k=4), heard.append)
    await until(lambda: heard)
    (refused,) = heard
    assert (refused.finish, refused.bad_request) == ("error", True)
    assert refused.error == "this engine has no top_k"
    # Greedy, a filter changes nothing: it is no reason to refuse.
    link.submit(request("s", temperature=0.0, top_k=4), heard.append)
    await until(lambda: recorder.requests)
    assert [one.id for one in recorder.requests] == ["2:s"]
    link.close()


async def test_steps_reach_their_owners_in_order(server: LinkServer, recorder: Recorder) -> None:
    link = await LinkClient.connect(server.start(), TOKEN)
    heard: dict[str, list[StepOutput]] = {"a": [], "b": []}
    for name in heard:
        link.submit(request(name), heard[name].append)
    await until(lambda: len(recorder.requests) == 2)
    steps = [
        [
            StepOutput("1:a", (1,)),
            StepOutput("2:b", (2,), (TokenLogprob(-0.5, ((2, -0.5), (9, -3))),)),
        ],
        [StepOutput("1:a", (3, 4)), StepOutput("stranger", (1,))],
        [StepOutput("2:b", (5,), finish="stop"), StepOutput("1:a", finish="error", error="why")],
        [StepOutput("1:a", (6,)), StepOutput("2:b", (6,))],
    ]
    for step in steps:
        server.send_step(step)
    await until(lambda: heard["a"] and heard["a"][-1].finish)
    assert heard["a"] == [evolve(o, id="a") for o in (steps[0][0], steps[1][0], steps[2][1])]
    assert heard["b"] == [evolve(o, id="b") for o in (steps[0][1], steps[2][0])]
    link.close()


async def test_an_aborted_request_is_heard_no_more(server: LinkServer, recorder: Recorder) -> None:
    link = await LinkClient.connect(server.start(), TOKEN)
    heard: list[StepOutput] = []
    other: list[StepOutput] = []
    link.submit(request("a"), heard.append)
    link.submit(request("b"), other.append)
    link.abort("a")
    link.abort("unknown")
    await until(lambda: recorder.aborted)
    link.submit(request("a", 7), heard.append)
    await until(lambda: len(recorder.requests) == 3)
    server.send_step([StepOutput("1:a", (1,)), StepOutput("2:b", (1,)), StepOutput("3:a", (2,))])
    await until(lambda: other and heard)
    assert heard == [StepOutput("a", (2,))]
    assert recorder.aborted == ["1:a"]
    link.close()


async def test_states_and_load_are_announced(server: LinkServer) -> None:
    link = await LinkClient.connect(server.start(), TOKEN, FAST)
    states: list[str] = []
    link.on_state(states.append)
    server.announce(STANDBY)
    await until(lambda: link.state == STANDBY)
    await link.activate()
    assert states == [STANDBY, READY]
    await until(lambda: link.load == EngineLoad(3, 2, 0.5, 77, 5, 600, 40))
    link.close()


async def test_refusals_and_engine_mistakes_cost_one_request(server: LinkServer) -> None:
    link = await LinkClient.connect(server.start(), TOKEN)
    heard: list[StepOutput] = []
    link.submit(request("long", *range(101)), heard.append)
    link.submit(request("bug", 666), heard.append)
    await until(lambda: len(heard) == 2)
    assert (heard[0].error, heard[0].bad_request) == ("too long", True)
    assert (heard[1].error, heard[1].bad_request) == ("RuntimeError: bug in the engine", False)
    assert link.lost is None
    link.close()


async def test_a_wrong_token_is_refused_on_both_sides(server: LinkServer) -> None:
    address = server.start()
    with pytest.raises(LinkLost, match="does not know the secret"):
        await LinkClient.connect(address, "wrong")
    link = await LinkClient.connect(address, TOKEN)
    link.close()


async def test_an_impostor_never_sees_the_token() -> None:
    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(1000))
        hello = (1, "shuntserve-link", VERSION, b"x" * 16)
        writer.write(encode(Handshake("guess").challenge(hello)))
        seen.append(await reader.read(1000))
        await end(writer)

    seen: list[bytes] = []
    listener = await asyncio.start_server(impostor, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    with pytest.raises(LinkLost, match="the engine does not know the secret"):
        await LinkClient.connect(f"127.0.0.1:{port}", TOKEN)
    await until(lambda: len(seen) == 2)
    assert not any(TOKEN.encode() in words for words in seen)
    listener.close()
    await listener.wait_closed()


async def test_another_version_is_refused_by_name(server: LinkServer) -> None:
    host, port = server.start().split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(encode((1, "shuntserve-link", 99, b"x" * 16)))
    assert b"link version 99 is not %d" % VERSION in await reader.read()
    await end(writer)


async def test_losing_the_engine_tells_every_owner_once(
    server: LinkServer, recorder: Recorder
) -> None:
    link = await LinkClient.connect(server.start(), TOKEN)
    told: list[str] = []
    heard: list[StepOutput] = []
    link.on_lost(lambda reason: told.append(f"lost: {reason}"))
    link.submit(request("a"), heard.append)
    link.submit(request("b"), heard.append)
    server.stop()
    await until(lambda: link.lost)
    assert told == ["lost: the peer said: the engine stops"]
    assert [(o.id, o.finish) for o in heard] == [("a", "error"), ("b", "error")]
    with pytest.raises(LinkLost):
        link.submit(request("c"), heard.append)
    link.on_lost(lambda reason: told.append("late"))
    assert told[1:] == ["late"]
    link.close()
    assert len(heard) == 2


async def test_a_lost_client_has_its_requests_aborted_and_may_come_back(
    server: LinkServer, recorder: Recorder
) -> None:
    address = server.start()
    link = await LinkClient.connect(address, TOKEN)
    link.submit(request("a"), lambda output: None)
    await until(lambda: recorder.requests)
    link.cut("killed")
    await until(lambda: recorder.aborted == ["1:a"])
    again = await LinkClient.connect(address, TOKEN)
    heard: list[StepOutput] = []
    again.submit(request("b"), heard.append)
    await until(lambda: len(recorder.requests) == 2)
    server.send_step([StepOutput("1:a", (9,)), StepOutput("1:b", (1,))])
    await until(lambda: heard)
    assert heard == [StepOutput("b", (1,))]
    again.close()


async def test_the_newest_client_counts(server: LinkServer, recorder: Recorder) -> None:
    address = server.start()
    old = await LinkClient.connect(address, TOKEN)
    heard: list[StepOutput] = []
    old.submit(request("a"), heard.append)
    await until(lambda: recorder.requests)
    new = await LinkClient.connect(address, TOKEN)
    await until(lambda: old.lost)
    assert "another client took over" in (old.lost or "")
    assert recorder.aborted == ["1:a"]
    assert new.lost is None
    new.close()


@pytest.mark.parametrize("scheme", ["unix", "tcp6"])
async def test_other_kinds_of_address(scheme: str, server: LinkServer, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/link" if scheme == "unix" else "[::1]:0"
    if scheme == "tcp6" and not socket.has_ipv6:
        address = "127.0.0.1:0"
    link = await LinkClient.connect(server.start(address), TOKEN)
    assert link.info == INFO
    link.close()


async def test_nobody_there_is_a_lost_link() -> None:
    with pytest.raises(LinkLost, match=r"127\.0\.0\.1:1"):
        await LinkClient.connect("127.0.0.1:1", TOKEN)


class Proxy:
    """Forwards bytes until it is told to swallow them: a network that goes black."""

    def __init__(self, address: str) -> None:
        self.target = address
        self.black = False
        self.writers: list[asyncio.StreamWriter] = []

    async def start(self) -> str:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.target.split(":")
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        self.writers += [writer, up_writer]
        await asyncio.gather(self._pump(reader, up_writer), self._pump(up_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if not self.black:
                    writer.write(data)
        except ConnectionError:
            pass
        if not self.black:
            await end(writer)

    async def close(self) -> None:
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
            await end(writer)


async def test_a_black_hole_is_noticed_on_both_sides(
    server: LinkServer, recorder: Recorder
) -> None:
    proxy = Proxy(server.start())
    link = await LinkClient.connect(await proxy.start(), TOKEN, FAST)
    heard: list[StepOutput] = []
    link.submit(request("a"), heard.append)
    await until(lambda: recorder.requests)
    proxy.black = True
    await until(lambda: link.lost and recorder.aborted)
    assert "silent" in (link.lost or "")
    assert heard[0].finish == "error"
    await proxy.close()


async def test_a_pause_of_this_process_is_not_held_against_the_engine(recorder: Recorder) -> None:
    with LinkServer(INFO, recorder, TOKEN) as server:
        link = await LinkClient.connect(server.start(), TOKEN, FAST)
        for _ in range(3):
            time.sleep(FAST.interval * FAST.missed * 1.5)  # noqa: ASYNC251 - blocking is the point
            await asyncio.sleep(0)
        await asyncio.sleep(FAST.interval * 2)
        assert link.lost is None
        link.close()


async def test_a_pause_of_this_process_does_not_look_like_its_death(recorder: Recorder) -> None:
    """However long it is, as heartbeats go; only a host that does not answer is gone."""
    policy = LinkPolicy(interval=0.01, missed=4)
    with LinkServer(INFO, recorder, TOKEN, policy) as server:
        link = await LinkClient.connect(server.start(), TOKEN, policy)
        heard: list[StepOutput] = []
        link.submit(request("a"), heard.append)
        await until(lambda: recorder.requests)
        time.sleep(100 * policy.interval * policy.missed * 0.5)  # noqa: ASYNC251 - the point
        server.send_step([StepOutput("1:a", (7,))])
        await until(lambda: heard)
        assert link.lost is None
        assert not recorder.aborted
        sock = link._transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < policy.host_silence
        link.close()


async def test_a_client_that_does_not_read_is_cut(recorder: Recorder) -> None:
    policy = LinkPolicy(write_buffer=100_000)
    with LinkServer(INFO, recorder, TOKEN, policy) as server:
        link = await LinkClient.connect(server.start(), TOKEN, policy)
        link.submit(request("a"), lambda output: None)
        await until(lambda: recorder.requests)
        assert link._transport is not None
        link._transport.pause_reading()
        step = [StepOutput("1:a", tuple(range(10_000)))]
        for _ in range(2000):
            server.send_step(step)
            if recorder.aborted:
                break
            await asyncio.sleep(0)
        await until(lambda: recorder.aborted == ["1:a"])
        link._transport.resume_reading()
        await until(lambda: link.lost)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (b"\xff\xff\xff\xff", b"over the limit"),
        (b"\x00\x00\x00\x01\xc1", b"not msgpack"),
        (b"\x00\x00\x00\x01\x05", b"not an array"),
        (encode((99,)), b"unknown kind"),
        (encode((16, "x")), b"malformed request"),
        (encode((16, "x", b"1234", b"", {"max_tokens": 0})), b"malformed request"),
        (encode((16, "x", b"1234", b"", {"max_tokens": 1, "new": 1})), b"malformed request"),
        (encode((16, "x", b"123", b"", {"max_tokens": 1})), b"malformed request"),
        (encode((17, 5)), b"expected a string"),
    ],
)
async def test_malformed_words_end_the_link_with_a_reason(
    words: bytes, reason: bytes, server: LinkServer
) -> None:
    host, port = server.start().split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    shake = Handshake(TOKEN)
    writer.write(encode(shake.hello()))
    decoder = FrameDecoder()
    (challenge,) = decoder.feed(await reader.read(1000))
    writer.write(encode(shake.prove(challenge)))
    await reader.read(1000)
    writer.write(words)
    assert reason in await reader.read()
    await end(writer)


async def test_a_silent_stranger_is_sent_away(recorder: Recorder) -> None:
    with LinkServer(INFO, recorder, TOKEN, LinkPolicy(handshake=0.05)) as server:
        host, port = server.start().split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        await end(writer)


async def test_many_strangers_keep_nobody_out(recorder: Recorder) -> None:
    """Each would have its time, which is longer than the test; the oldest make room."""
    with LinkServer(INFO, recorder, TOKEN, LinkPolicy(handshake=1000.0)) as server:
        host, port = server.start().split(":")
        strangers = [await asyncio.open_connection(host, int(port)) for _ in range(70)]
        async with asyncio.timeout(20):
            for reader, _ in strangers[:6]:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
        link = await LinkClient.connect(f"{host}:{port}", TOKEN)
        assert link.info == INFO
        assert len(server._strangers) <= 64
        assert not any(reader.at_eof() for reader, _ in strangers[7:])
        link.close()
        for _, writer in strangers:
            await end(writer)


async def test_an_owner_that_fails_disturbs_no_other(
    server: LinkServer, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    link = await LinkClient.connect(server.start(), TOKEN)
    heard: list[StepOutput] = []

    def broken(output: StepOutput) -> None:
        raise RuntimeError("a bug above the link")

    link.submit(request("a"), broken)
    link.submit(request("b"), heard.append)
    await until(lambda: len(recorder.requests) == 2)
    server.send_step([StepOutput("1:a", (1,)), StepOutput("2:b", (1,))])
    await until(lambda: heard)
    assert "a bug above the link" in caplog.text
    link.close()
