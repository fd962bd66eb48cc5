"""What browsers may do: pages of which origins, and under which names of this server.

Any page that somebody opens can send requests to any address that his machine reaches.  Keys keep
pages out.  Without keys the browser's own words do: it says from which origin a page is, and by
which name it was told to reach the server.  A name that is not this server's own may be anybody's,
pointed at this address for the moment (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from functools import lru_cache

from aiohttp import web

from shuntserve_plugins.frontdoors.openai.errors import ApiError

_HEADERS = re.compile(r"[A-Za-z0-9-]{1,64}(?: *, *[A-Za-z0-9-]{1,64}){0,63}")
_OWN = "Authorization, Content-Type, X-Request-Id"
_EXPOSED = "X-Request-Id, Retry-After"


def cors(request: web.BaseRequest, origins: Collection[str]) -> Mapping[str, str]:
    """Headers of an answer that let the page that asked read it; none for other pages."""
    origin = request.headers.get("Origin") if origins else None
    if origin is None or origin not in origins:
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": _EXPOSED,
        "Vary": "Origin",
    }


def preflight(request: web.BaseRequest) -> web.Response:
    """The answer to a browser that asks whether a page, one that may, can send such a request.

    A page that may call the API may send what headers it likes: clients send their own.
    """
    asked = request.headers.get("Access-Control-Request-Headers", "")
    headers = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": asked if _HEADERS.fullmatch(asked) else _OWN,
        "Access-Control-Max-Age": "600",
    }
    if request.headers.get("Access-Control-Request-Private-Network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return web.Response(status=204, headers=headers)


def check(request: web.BaseRequest, hosts: frozenset[str], origins: Collection[str]) -> None:
    """Raise `ApiError` 403 for what a foreign page may have sent, where there are no keys."""
    host = request.headers.get("Host", "")
    origin = request.headers.get("Origin")
    if host and not _is_own(host, hosts):
        raise ApiError(
            403,
            "This server is not known by this name: add it to frontdoor.allowed_hosts, or give "
            "out API keys.",
            code="foreign_host",
        )
    if origin is None or origin in origins or origin.partition("://")[2] == host:
        return
    raise ApiError(
        403,
        "Pages of this origin may not call this server: add it to frontdoor.cors_origins.",
        code="foreign_origin",
    )


@lru_cache(maxsize=256)
def _is_own(host: str, hosts: frozenset[str]) -> bool:
    """An address is no name that could be pointed elsewhere."""
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
    name = name.removeprefix("[").removesuffix("]").removesuffix(".").lower()
    if name == "localhost" or name.endswith(".localhost") or name in hosts:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
