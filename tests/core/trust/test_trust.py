"""Certificates and tickets of a cluster, on real TLS connections."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
import time
from pathlib import Path

import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.trust.authority import (
    CONTROL,
    Authority,
    Identity,
    machine_name,
    machine_of,
    make_request,
    trusting,
)
from shuntserve_core.trust.tickets import Ticket, TicketBook, TicketRefused

HOUR = 3600.0


def member(authority: Authority, directory: Path, name: str) -> Identity:
    """A machine that made its own key."""
    directory.mkdir()
    key, request = make_request()
    identity = Identity.at(directory)
    identity.key.write_text(key)
    identity.authority.write_text(authority.certificate)
    identity.certificate.write_text(authority.sign(request, machine_name(name)))
    return identity


def meet(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> tuple[str, str]:
    """What the client read and who the server saw.  Raises the client's error."""
    here, there = socket.socketpair()
    seen = []

    def serve() -> None:
        try:
            with server.wrap_socket(here, server_side=True) as tls:
                seen.append(machine_of(tls.getpeercert()))
                tls.sendall(b"hello")
        except (ssl.SSLError, OSError):
            here.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(there, server_hostname=name) as tls:
            read = tls.recv(5).decode()
    finally:
        there.close()
        thread.join()
    return read, seen[0] if seen else ""


def test_members_know_each_other(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "trust", "c")
    machine = member(authority, tmp_path / "m", "m1")
    control = authority.identity()
    assert meet(control.server(), machine.client(), CONTROL) == ("hello", "m1")
    assert meet(machine.server(), control.client(), machine_name("m1")) == ("hello", "")


def test_another_members_name_is_not_ones_own(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "trust", "c")
    one, two = (member(authority, tmp_path / name, name) for name in ("m1", "m2"))
    with pytest.raises(ssl.SSLCertVerificationError, match="ostname mismatch"):
        meet(two.server(), one.client(), CONTROL)


def test_strangers_and_other_clusters_are_refused(tmp_path: Path) -> None:
    authority, other = (Authority(tmp_path / name, name) for name in ("one", "other"))
    stranger = trusting(authority.certificate)
    with pytest.raises((ssl.SSLError, OSError)):
        meet(authority.identity().server(), stranger, CONTROL)
    assert meet(authority.identity().server(strangers=True), stranger, CONTROL) == ("hello", "")
    with pytest.raises(ssl.SSLCertVerificationError):
        meet(other.identity().server(strangers=True), stranger, CONTROL)
    theirs = member(other, tmp_path / "m", "m1")
    theirs.authority.write_text(authority.certificate)
    with pytest.raises((ssl.SSLError, OSError)):
        meet(authority.identity().server(strangers=True), theirs.client(), CONTROL)


def test_keys_are_this_users_alone_and_last(tmp_path: Path) -> None:
    first = Authority(tmp_path / "trust", "c")
    identity = first.identity()
    again = Authority(tmp_path / "trust", "c")
    assert again.certificate == first.certificate
    assert again.identity().certificate.read_text() == identity.certificate.read_text()
    for file in (tmp_path / "trust").rglob("*.pem"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (tmp_path / "trust" / "authority-key.pem").write_text("no key")
    with pytest.raises(UserError, match="damaged"):
        Authority(tmp_path / "trust", "c")


def test_only_a_signing_request_is_signed(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "trust", "c")
    for text in ("", "x", authority.certificate):
        with pytest.raises(UserError, match="signing request"):
            authority.sign(text, machine_name("m"))


@pytest.fixture
def book(tmp_path: Path) -> TicketBook:
    return TicketBook(tmp_path / "tickets")


def ticket(book: TicketBook, seconds: float = HOUR, uses: int = 1) -> Ticket:
    urls = ("https://head:7443",)
    return book.make(
        cluster="c", instance="g6", urls=urls, authority="PEM", seconds=seconds, uses=uses
    )


def test_a_ticket_is_for_one_type_and_one_machine(book: TicketBook, tmp_path: Path) -> None:
    made = ticket(book)
    made.write(tmp_path / "ticket.json")
    read = Ticket.read(tmp_path / "ticket.json")
    assert read == made
    assert stat.S_IMODE((tmp_path / "ticket.json").stat().st_mode) == 0o600
    assert book.redeem(read.id, read.secret, "m1") == "g6"
    with pytest.raises(TicketRefused, match="used once, by m1"):
        book.redeem(read.id, read.secret, "m2")


def test_several_uses_are_counted(book: TicketBook) -> None:
    made = ticket(book, uses=2)
    assert [book.redeem(made.id, made.secret, name) for name in ("a", "b")] == ["g6", "g6"]
    with pytest.raises(TicketRefused, match="used 2 times"):
        book.redeem(made.id, made.secret, "c")


def test_what_is_not_taken(book: TicketBook, tmp_path: Path) -> None:
    made = ticket(book)
    for ident, secret, why in (
        (made.id, "guess", "secret is wrong"),
        ("0123456789abcdef", made.secret, "not of this cluster"),
        ("../../etc/passwd", made.secret, "id is none"),
        ("", made.secret, "id is none"),
    ):
        with pytest.raises(TicketRefused, match=why):
            book.redeem(ident, secret, "m")
    late = ticket(book, seconds=-1)
    with pytest.raises(TicketRefused, match="expired"):
        book.redeem(late.id, late.secret, "m")
    assert book.revoke(made.id)
    assert not book.revoke(made.id)
    with pytest.raises(TicketRefused, match="not of this cluster"):
        book.redeem(made.id, made.secret, "m")
    file = tmp_path / "t"
    for text in ("", "{}", "[1]", '{"id": 1}', "x" * 100_000):
        file.write_text(text)
        with pytest.raises(UserError, match="not a ticket"):
            Ticket.read(file)
    with pytest.raises(UserError, match="cannot read the ticket"):
        Ticket.read(tmp_path / "nothing")
    assert time.time() < made.expires
