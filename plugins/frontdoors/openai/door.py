"""The plugin: an OpenAI-compatible HTTP server over a running cluster."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import resource
import secrets
import socket
import time
from contextlib import suppress
from typing import Annotated

from attrs import define, evolve, field
from attrs.validators import ge, le

from shuntserve_core.config.fields import RelativePath
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.frontdoor import Backend
from shuntserve_core.text import TextTokenizer, load_tokenizer
from shuntserve_plugins.frontdoors.openai.application import Application
from shuntserve_plugins.frontdoors.openai.certificates import server_context
from shuntserve_plugins.frontdoors.openai.connection import ConnectionServer
from shuntserve_plugins.frontdoors.openai.context import Site
from shuntserve_plugins.frontdoors.openai.desk import Desk
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.handshakes import TlsServer
from shuntserve_plugins.frontdoors.openai.keys import ApiKey, KeyRing
from shuntserve_plugins.frontdoors.openai.limits import Limits
from shuntserve_plugins.frontdoors.openai.logs import ACCESS, access_handler
from shuntserve_plugins.frontdoors.openai.metrics import Metrics
from shuntserve_plugins.frontdoors.openai.openapi import document

BACKLOG = 4096
SPARE_FILES = 256
"""File descriptors that are not for clients."""
GOODBYE_SECONDS = 2.0
"""For last events to leave, after the deadline of a drain."""


def _remedy(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return "set host to an address of this machine, or to 0.0.0.0 for all"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "choose a port from 1024 on"
    return "choose another port (0 takes a free one)"


@define(eq=False)
class OpenAIFrontDoor:
    """`[frontdoor]` with `name = "openai"`."""

    host: str = "127.0.0.1"
    """Address to listen on; `0.0.0.0` and `::` are every address of this machine."""
    port: int = field(default=8000, validator=[ge(0), le(65535)])
    """0 takes a free one."""
    api_keys: tuple[ApiKey, ...] = ()
    """Keys that clients must present; none lets everybody in."""
    limits: Limits = field(factory=Limits)
    """Sizes, times and connections."""
    keep_alive_seconds: float = field(default=5.0, validator=ge(0))
    """A stream on which nothing was sent for so long carries a comment, so that proxies do not cut
    it while it waits; what fails later is an event of the stream, no HTTP status.  0: never."""
    open_metrics: bool = False
    """Whether `/metrics` needs no key."""
    share_prefixes: bool = False
    """Whether prompts that engines have cached serve all keys.  Otherwise each key has its own: how
    soon an answer begins then tells nobody what others have asked.  Without keys, all share."""
    cors_origins: tuple[str, ...] = ()
    """Web origins (`https://example.org`) whose pages may call this API."""
    allowed_hosts: tuple[str, ...] = ()
    """Names beside this machine's own and `localhost` under which browsers may reach a server
    without API keys; addresses need not be named."""
    tls_certificate: Annotated[str, RelativePath()] = ""
    """File with the certificate chain, in PEM; with it the server speaks HTTPS only."""
    tls_key: Annotated[str, RelativePath()] = ""
    """File with the certificate's private key, in PEM."""
    chat_template: Annotated[str, RelativePath()] = ""
    """File with a Jinja template to use instead of the model's own."""
    access_log: Annotated[str, RelativePath("stderr", "stdout")] = ""
    """`stderr`, `stdout` or a file for one JSON line a request; empty leaves it to logging."""
    _site: Site | None = field(default=None, init=False)
    _server: ConnectionServer | None = field(default=None, init=False)
    _tls_server: TlsServer | None = field(default=None, init=False)
    _listener: asyncio.Server | None = field(default=None, init=False)
    _log_handler: logging.Handler | None = field(default=None, init=False)

    async def start(self, backend: Backend, model_dir: str, model_name: str) -> str:
        """Listen, and return the base URL.

        Raises `UserError` for a bad tokenizer, key or certificate, or a port that is taken.
        """
        keys = KeyRing(self.api_keys)
        tls = server_context(self.tls_certificate, self.tls_key)
        tokenizer = await asyncio.to_thread(self._tokenizer, model_dir)
        limits = evolve(self.limits, connections=_possible_connections(self.limits.connections))
        metrics = Metrics(backend, model_name)
        site = self._site = Site(
            backend,
            tokenizer,
            Desk.make(tokenizer, model_name, limits, model_dir, self.chat_template),
            model_name,
            limits,
            metrics,
            int(time.time()),
            document(with_keys=bool(keys)),
            None if self.share_prefixes else secrets.token_bytes(32),
            self.keep_alive_seconds,
        )
        origins = frozenset(self.cors_origins)
        names = {socket.gethostname(), self.host, *self.allowed_hosts}
        hosts = frozenset(name.lower() for name in names)
        application = Application(site, keys, self.open_metrics, origins, hosts)
        self._server = ConnectionServer(application.handle, limits, metrics)
        loop = asyncio.get_running_loop()
        try:
            self._tls_server = TlsServer(self._server, tls, limits) if tls else None
            makes = self._tls_server or self._server
            self._listener = await loop.create_server(makes, self.host, self.port, backlog=BACKLOG)
        except OSError as error:
            raise UserError(
                f"cannot listen on {self.host} port {self.port}: {error.strerror or error}",
                where="frontdoor",
                remedy=_remedy(error),
            ) from error
        self._start_log()
        return self._url(self._listener.sockets[0].getsockname()[1])

    def _tokenizer(self, model_dir: str) -> TextTokenizer:
        tokenizer = load_tokenizer(model_dir, template=self.chat_template)
        # These are worked out here, and not on the event loop.
        assert tokenizer.bytes_per_token != 0
        tokenizer.learn_templates()
        return tokenizer

    def _start_log(self) -> None:
        self._log_handler = access_handler(self.access_log)
        if self._log_handler is not None:
            logger = logging.getLogger(ACCESS)
            logger.setLevel(logging.INFO)
            logger.propagate = False
            logger.addHandler(self._log_handler)

    @property
    def url(self) -> str:
        """Where it will listen."""
        return self._url(self.port)

    def _url(self, port: int) -> str:
        scheme = "https" if self.tls_certificate else "http"
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(self.host, self.host)  # noqa: S104
        return f"{scheme}://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{port}"

    async def drain(self, deadline: float) -> None:
        """Answer no new request, finish those under way within `deadline` seconds, then close.

        Meanwhile `/ready` and new requests get 503.  What is not finished in time ends with an
        error event, never with `[DONE]`.
        """
        site, server, listener = self._site, self._server, self._listener
        if site is None or server is None or listener is None:
            return
        site.draining = True
        await _until_idle(site, deadline)
        gone = ApiError(503, "The server is shutting down.", code="shutting_down", retry_after=5)
        for end in site.ends:
            end(gone)
        await _until_idle(site, GOODBYE_SECONDS)
        listener.close()
        if self._tls_server is not None:
            self._tls_server.close()
        server.pre_shutdown()  # idle connections go at once
        await server.shutdown(GOODBYE_SECONDS)
        await listener.wait_closed()
        await site.desk.pool.close()
        self._stop_log()

    def _stop_log(self) -> None:
        if self._log_handler is not None:
            logging.getLogger(ACCESS).removeHandler(self._log_handler)
            self._log_handler.close()
            self._log_handler = None

    def security_posture(self) -> list[str]:
        """Every open surface, and how to close it; one line each."""
        here = f"{self.host}:{self.port}"
        public = not _is_loopback(self.host)
        lines = []
        if public:
            lines.append(f'{here} is open to the network; host = "127.0.0.1" keeps it local')
        if not self.api_keys:
            lines.append(
                f"no API key: whoever reaches {here} can use the model; add [[frontdoor.api_keys]]"
            )
        else:
            names = ", ".join(key.name for key in self.api_keys)
            lines.append(f"API keys: {names}; /health and /ready need none")
        if not self.tls_certificate:
            remedy = "set tls_certificate and tls_key, or put a TLS proxy before it"
            lines.append(f"plain HTTP: prompts and keys can be read on the way; {remedy}")
        if self.open_metrics or not self.api_keys:
            lines.append("/metrics is open; it shows counts, never text (open_metrics, api_keys)")
        if self.cors_origins:
            origins = ", ".join(self.cors_origins)
            lines.append(f"web pages of {origins} may call the API; cors_origins = [] stops them")
        return lines


async def _until_idle(site: Site, seconds: float) -> None:
    """Wait until nothing is generated any more, or the time is up."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await site.idle.wait()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _possible_connections(wanted: int) -> int:
    """As many connections as the limit on open files allows, once it is raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, raised), hard))
        soft = max(soft, raised)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - SPARE_FILES))
