"""What the project's own HTTP interfaces, the control plane's and the agents', have in common.

Whoever calls them has a secret, and may still send anything: each field is of its type, numbers are
finite, names are names, and what is wrong is told with status 400.
"""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, get_args, get_origin

import cattrs
from aiohttp import web
from aiohttp.typedefs import Middleware

from shuntserve_core.errors import UserError
from shuntserve_core.foreign import parse_json

logger = logging.getLogger(__name__)

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._#:+-]{0,199}")
_MODULE = re.compile(r"[A-Za-z_]\w{0,63}(\.[A-Za-z_]\w{0,63}){0,15}", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}|[0-9A-Fa-f:][0-9A-Fa-f:.]{1,44}")


def guarded(token: str, on_contact: Callable[[], None] = lambda: None) -> Middleware:
    """Middleware: every request carries the token, and every mistake is answered in JSON."""
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, expected):
            return web.json_response({"error": "missing or wrong token"}, status=401)
        on_contact()
        try:
            return await handler(request)
        except UserError as error:
            return web.json_response({"error": str(error)}, status=400)
        except web.HTTPException as error:
            return web.json_response({"error": error.reason}, status=error.status)
        except Exception as error:
            logger.exception("%s %s failed", request.method, request.path)
            return web.json_response({"error": f"internal error: {error!r}"}, status=500)

    return guard


async def body_of(request: web.Request, kind: type[T]) -> T:
    """The body as a value of that type.  Raises `UserError` that names each wrong field."""
    try:
        document = parse_json(await request.read())
    except ValueError as error:
        raise UserError(f"the body is not JSON: {error}") from error
    return structured(document, kind)


def structured(document: Any, kind: type[T], name: str = "body") -> T:
    """A parsed document as a value of that type.  Raises `UserError`."""
    try:
        return _CONVERTER.structure(document, kind)
    except cattrs.BaseValidationError as error:
        reasons = cattrs.transform_error(error, path=name, format_exception=_describe)
        raise UserError("; ".join(reason[:200] for reason in reasons[:8])) from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}"[:400]) from error
    except AttributeError as error:
        raise UserError(f"{name}: expected an object, got {repr(document)[:80]}") from error


def _describe(error: BaseException, kind: type | None) -> str:
    """What is wrong, in the words of the check that found it."""
    if isinstance(error, KeyError | cattrs.ForbiddenExtraKeysError):
        return cattrs.v.format_exception(error, kind)
    return str(error.args[0] if error.args else error)


def checked_name(text: str, what: str) -> str:
    """The text, if it is a name that can stand in a file's name.  Raises `UserError`."""
    return _matching(_NAME, text, what)


def checked_module(text: str) -> str:
    """The text, if it is the dotted name of a module.  Raises `UserError`."""
    return _matching(_MODULE, text, "a module")


def checked_host(text: str) -> str:
    """The text, if it is an address or a host's name.  Raises `UserError`."""
    return _matching(_HOST, text, "an address")


def _matching(pattern: re.Pattern[str], text: str, what: str) -> str:
    if not pattern.fullmatch(text):
        raise UserError(f"{text[:80]!r} is not the name of {what}")
    return text


def number_in(text: str, what: str, lowest: float, highest: float) -> float:
    """A number that a query or a path gives.  Raises `UserError` unless it lies between."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not lowest <= number <= highest:
        raise UserError(f"{what} is {text[:40]!r}, not a number from {lowest:g} to {highest:g}")
    return number


def _strict(kind: type) -> Callable[[Any, Any], Any]:
    """JSON has types: a text is no number, and a number no text."""
    allowed = (int, float) if kind is float else (kind,)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"expected {kind.__name__}, got {repr(value)[:80]}")
        return value

    return structure


_LISTS: tuple[object, ...] = (list, tuple)


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, _strict(kind))

    def list_hook(kind: Any) -> Callable[[Any, Any], Any]:
        """A list, and no text or object that can be gone through like one."""
        make, element = get_origin(kind), get_args(kind)[0]

        def structure(value: Any, _: Any) -> Any:
            if not isinstance(value, list):
                raise TypeError(f"expected a list, got {repr(value)[:80]}")
            return make(converter.structure(item, element) for item in value)

        return structure

    def is_list(kind: Any) -> bool:
        return get_origin(kind) in _LISTS

    converter.register_structure_hook_factory(is_list, list_hook)
    return converter


_CONVERTER = _make_converter()
