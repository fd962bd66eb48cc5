"""HTTP by hand, for what no well-behaved client would send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from attrs import frozen


@frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error, once its shape is found right."""
        whole = json.loads(self.body)
        assert set(whole) == {"error"}
        assert set(whole["error"]) == {"message", "type", "param", "code"}
        found: dict[str, Any] = whole["error"]
        return found


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    body = b""
    if "Content-Length" in headers:
        body = await reader.readexactly(int(headers["Content-Length"]))
    elif headers.get("Transfer-Encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    return Answer(int(first.split()[1]), headers, body)


def request(
    body: bytes | dict[str, Any] = b"",
    path: str = "/v1/completions",
    method: str = "POST",
    **headers: str,
) -> bytes:
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    named = {
        "Host": "localhost",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


async def send(address: tuple[str, int], data: bytes) -> Answer:
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(data)
        return await read_answer(reader)
    finally:
        writer.close()
        await writer.wait_closed()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Drop a connection, whatever is still to be written."""
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


async def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something that sends no word."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)
