"""What endpoints work with: the site (one model behind one door) and the call (one request)."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge
from attrs import define, field

from shuntserve_core.interfaces.frontdoor import Backend
from shuntserve_core.text import TextTokenizer
from shuntserve_plugins.frontdoors.openai.addresses import network_of
from shuntserve_plugins.frontdoors.openai.desk import Desk
from shuntserve_plugins.frontdoors.openai.ends import Ends
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.keys import KeyUse, Stay
from shuntserve_plugins.frontdoors.openai.limits import Limits
from shuntserve_plugins.frontdoors.openai.metrics import Metrics
from shuntserve_plugins.frontdoors.openai.reading import Reading
from shuntserve_plugins.frontdoors.openai.sampling import Served


@define(eq=False)
class Site:
    """One model behind one front door."""

    backend: Backend
    tokenizer: TextTokenizer
    desk: Desk
    model: str
    limits: Limits
    metrics: Metrics
    created: int
    """When the server started, in Unix seconds."""
    document: bytes = b""
    """The OpenAPI document."""
    salt_secret: bytes | None = None
    """Makes each key's `cache_salt`; None where keys share cached prompts."""
    keep_alive_seconds: float = 0.0
    """Silence of a stream after which a comment is sent; 0: never."""
    draining: bool = False
    ends: Ends = field(init=False)
    """How generations under way are ended."""
    idle: asyncio.Event = field(factory=asyncio.Event)
    """Set while nothing is being generated."""
    _working: int = field(default=0, init=False)
    _prefix: str = field(factory=lambda: secrets.token_hex(6), init=False)
    _numbers: Iterator[int] = field(factory=itertools.count, init=False)

    def __attrs_post_init__(self) -> None:
        self.idle.set()
        self.ends = Ends(self.limits.request_seconds)
        self.metrics.in_flight.set_function(lambda: self._working)

    def begin(self) -> None:
        """Something is generated from now on; raises `ApiError` 503 while draining."""
        if self.draining:
            raise ApiError(503, "The server is shutting down.", code="shutting_down", retry_after=5)
        self._working += 1
        self.idle.clear()

    def finish(self) -> None:
        """What `begin` began is over."""
        self._working -= 1
        if not self._working:
            self.idle.set()

    @property
    def busy(self) -> int:
        """Generations under way."""
        return self._working

    @staticmethod
    def now() -> int:
        """Unix seconds."""
        return int(time.time())

    @staticmethod
    def timestamp() -> str:
        """The time for a log."""
        return datetime.now(UTC).isoformat(timespec="milliseconds")

    def new_id(self) -> str:
        """An id that no other request of any server has."""
        return f"{self._prefix}{next(self._numbers):08x}"


@define(eq=False)
class Call:
    """One HTTP request."""

    site: Site
    request: web.BaseRequest
    id: str
    """Ours, unique; also of the journal."""
    request_id: str
    """The client's `X-Request-Id`, or ours."""
    started: float
    """When it arrived, by `time.perf_counter` (the loop's own clock may tick in milliseconds)."""
    key: KeyUse | None = None
    cors: Mapping[str, str] = field(factory=dict)
    """Headers of the answer for the page that asks, if it may."""
    produced: Callable[[], int] = int
    """Tokens of output so far."""
    log: dict[str, Any] = field(factory=dict)
    """Further fields of the access log; nothing that a client wrote as text."""

    def served(self, answers: int) -> Served:
        """What the request can be checked against."""
        site = self.site
        cap = self.key.key.max_tokens if self.key else 0
        if cap and answers > cap:
            raise ApiError(
                400, f"This API key may ask for at most {cap} tokens of output.", param="n"
            )
        return Served(
            site.tokenizer,
            site.backend.features,
            site.backend.max_length,
            cap // answers,
            site.tokenizer.defaults if site.limits.model_defaults else {},
        )

    async def read(self, kind: str) -> Reading:
        """Read and validate the request body, and all that grows with it; see `reading`."""
        if self.request.content_type != "application/json":
            raise ApiError(
                415, "Send the body as JSON, with the header Content-Type: application/json."
            )
        if self.request.headers.get("Content-Encoding", "identity") != "identity":
            raise ApiError(415, "Send the body without Content-Encoding.")
        site = self.site
        raw = await self._read()
        return await site.desk.read(kind, raw, site.backend.max_length, self.tenant, self.weight)

    @property
    def tenant(self) -> str:
        """Who shares the cluster with whom: the key, or without keys the client's address."""
        if self.key is not None:
            return f"key:{self.key.key.name}"
        return f"address:{network_of(self.request.remote or '')}"

    @property
    def cache_salt(self) -> str:
        """Whose cached prompts it may use: its key's, everybody's without keys or if shared.

        Nobody outside can guess it, so that no client can make a prompt that meets another's.
        """
        if self.key is None or self.site.salt_secret is None:
            return ""
        name = self.key.key.name.encode()
        return hashlib.blake2b(name, key=self.site.salt_secret, digest_size=16).hexdigest()

    @property
    def weight(self) -> float:
        """Its share, beside others'."""
        return self.key.key.weight if self.key is not None else 1.0

    async def _read(self) -> bytes:
        limits, request = self.site.limits, self.request
        too_large = ApiError(
            413, f"The body is larger than {limits.body_bytes} bytes.", code="body_too_large"
        )
        if (request.content_length or 0) > limits.body_bytes:
            raise too_large
        if request.content.is_eof():  # most bodies come with their headers
            body = request.content.read_nowait()
            if len(body) > limits.body_bytes:
                raise too_large
            return body
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            async with asyncio.timeout(limits.body_seconds):
                return await request.read()
        except TimeoutError:
            raise ApiError(
                408, f"The body did not come within {limits.body_seconds:g} seconds."
            ) from None
        except HTTPRequestEntityTooLarge:
            raise too_large from None

    def begin(self, answers: int, prompt_tokens: int, reserved: int) -> Stay | None:
        """Something is generated from now on; raises `ApiError` where there is no room.

        `reserved` is the output that was asked for in so many words, of all answers together.
        Whoever begins hands what this returns to `finish`.
        """
        self.site.begin()
        if self.key is None:
            return None
        stay = Stay(answers, reserved, self._produced)
        try:
            self.key.enter(self.started, stay, prompt_tokens)
        except BaseException:
            self.site.finish()
            raise
        return stay

    def finish(self, stay: Stay | None) -> None:
        """What `begin` began is over."""
        if self.key is not None and stay is not None:
            self.key.leave(stay)
        self.site.finish()

    def _produced(self) -> int:
        return self.produced()
