"""Machines and the desk that they join at, over real TLS on loopback; no agents."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from attrs import evolve

from shuntserve_core.errors import UserError
from shuntserve_core.joining import desk as desk_module
from shuntserve_core.joining import machine as machine_module
from shuntserve_core.joining.desk import Desk, Machine
from shuntserve_core.joining.machine import Facts, JoiningMachine
from shuntserve_core.trust.authority import CONTROL, Authority, Identity, trusting
from shuntserve_core.trust.tickets import Ticket, TicketBook


class Hall:
    """A desk that listens, and machines that stay at it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority(directory / "trust", "hall")
        self.book = TicketBook(directory / "tickets")
        self.desk = Desk(directory / "machines", self.authority, self.book, set)
        self.url = ""
        self.stop = asyncio.Event()

    def ticket(self, instance: str = "solo", seconds: float = 60, uses: int = 1) -> Ticket:
        return self.book.make(
            cluster="hall",
            instance=instance,
            urls=(self.url,),
            authority=self.authority.certificate,
            seconds=seconds,
            uses=uses,
        )

    def machine(self, name: str) -> JoiningMachine:
        return JoiningMachine(self.directory / name, [self.url], Facts())

    async def connected(self, instance: str = "solo") -> Machine:
        async with asyncio.timeout(20):
            return await self.desk.find(instance, lambda m: True, lambda m: m.id)

    async def alone(self) -> None:
        async with asyncio.timeout(20):
            while self.desk.machines:  # noqa: ASYNC110 - the desk has no event for it
                await asyncio.sleep(0.01)


@pytest.fixture
async def hall(tmp_path: Path) -> AsyncIterator[Hall]:
    hall = Hall(tmp_path)
    host, port = await hall.desk.start("127.0.0.1", 0)
    hall.url = f"https://{host}:{port}"
    yield hall
    hall.stop.set()
    await hall.desk.close()


@contextlib.asynccontextmanager
async def staying(machine: JoiningMachine, ticket: Ticket | None) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(machine.run(stop, ticket))
    try:
        yield
    finally:
        stop.set()
        await task


async def test_a_machine_joins_with_a_ticket_and_returns_with_its_certificate(hall: Hall) -> None:
    async with staying(hall.machine("m"), hall.ticket()):
        first = await hall.connected()
        assert (first.instance, first.hello.host, first.node) == ("solo", "127.0.0.1", "")
        assert hall.desk.waiting() == {"solo": 1}
    await hall.alone()
    assert hall.desk.waiting() == {}
    async with staying(hall.machine("m"), None):
        assert (await hall.connected()).id == first.id


async def test_a_machine_dials_until_there_is_a_control_plane(hall: Hall) -> None:
    port = int(hall.url.rpartition(":")[2])
    ticket = hall.ticket()
    await hall.desk.close()
    async with staying(hall.machine("m"), ticket):
        await asyncio.sleep(0.3)
        hall.desk = Desk(hall.directory / "machines", hall.authority, hall.book, set)
        await hall.desk.start("127.0.0.1", port)
        assert (await hall.connected()).instance == "solo"


async def refused(hall: Hall, name: str, ticket: Ticket | None, why: str) -> None:
    with pytest.raises(UserError, match=why):
        async with asyncio.timeout(20):
            await hall.machine(name).run(asyncio.Event(), ticket)


async def test_tickets_that_are_not_taken(hall: Hall, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    once = hall.ticket()
    async with staying(hall.machine("m"), once):
        await hall.connected()
        await refused(hall, "second", once, "used once")
    await refused(hall, "late", hall.ticket(seconds=-1), "expired")
    await refused(hall, "guess", evolve(hall.ticket(), secret="guess"), "secret is wrong")
    await refused(hall, "none", None, "no certificate of the cluster")
    assert caplog.text.count("was refused") == 3
    assert not list(hall.directory.glob("second/nodes/*"))


async def test_another_cluster_is_not_told_the_secret(
    hall: Hall, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Authority(tmp_path / "other", "other")
    foreign = evolve(hall.ticket(), authority=other.certificate)
    async with staying(hall.machine("m"), foreign):
        async with asyncio.timeout(20):
            while "not the control plane of this cluster" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    assert not hall.desk.machines
    assert hall.book.redeem(foreign.id, foreign.secret, "x") == "solo"  # not used up


async def test_another_version_is_refused_by_name(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staying(hall.machine("m"), hall.ticket()):
        await hall.connected()
    await hall.alone()
    monkeypatch.setattr(machine_module, "__version__", "9.9.9")
    await refused(hall, "m", None, r"it runs shuntserve 9\.9\.9, and the control plane \d")
    monkeypatch.undo()
    monkeypatch.setattr(desk_module, "__version__", "8.8.8")
    await refused(hall, "new", hall.ticket(), r"the control plane 8\.8\.8")


async def test_a_machine_that_was_struck_off_is_refused(hall: Hall) -> None:
    async with staying(hall.machine("m"), hall.ticket()):
        known = await hall.connected()
    (hall.directory / "machines" / f"{known.id}.json").unlink()
    await refused(hall, "m", None, "not known")


async def test_strangers_get_nothing(hall: Hall) -> None:
    tls = trusting(hall.authority.certificate)
    control = hall.authority.identity().client()
    async with aiohttp.ClientSession() as session:

        async def status(path: str, context: object, **body: object) -> int:
            call = session.post if body else session.get
            async with call(
                hall.url + path, ssl=context, server_hostname=CONTROL, **body
            ) as answer:
                return answer.status

        assert await status("/v1/host", tls) == 401
        assert await status("/v1/host", control) == 401  # a member, and no machine
        for body in (b"", b"{", b"[]", b'{"ticket": 1}', b"x" * 70_000):
            assert await status("/v1/machines", tls, data=body) in (400, 413)
    port = int(hall.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v1/host HTTP/1.1\r\n\r\n")
    assert b"200" not in await reader.read()
    writer.close()


@pytest.mark.parametrize("greeting", ["", "[]", "{}", '{"version": 1}', "x" * 70_000])
async def test_a_member_that_talks_nonsense_is_cut_off(hall: Hall, greeting: str) -> None:
    async with staying(hall.machine("m"), hall.ticket()):
        await hall.connected()
    await hall.alone()
    tls = Identity.at(hall.directory / "m" / "identity").client()
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{hall.url}/v1/host", ssl=tls, server_hostname=CONTROL) as socket,
    ):
        await socket.send_str(greeting)
        async with asyncio.timeout(20):
            message = await socket.receive()
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    assert not hall.desk.machines


async def test_the_newest_connection_of_a_machine_counts(hall: Hall) -> None:
    async with staying(hall.machine("m"), hall.ticket()):
        first = await hall.connected()
        tls = Identity.at(hall.directory / "m" / "identity").client()
        hello = machine_module.plain(first.hello)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{hall.url}/v1/host", ssl=tls, server_hostname=CONTROL) as socket,
        ):
            await socket.send_str(json.dumps(hello))
            async with asyncio.timeout(20):
                while hall.desk.machines.get(first.id) in (first, None):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    await hall.alone()
