"""The one shape of every error: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import math

import msgspec

from shuntserve_core.interfaces.frontdoor import Refused

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ErrorDetail(msgspec.Struct):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """The body of every response that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """An error to answer with; `param` is the request's field that caused it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    @property
    def type(self) -> str:
        """OpenAI's name for this kind of error."""
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        return TYPES.get(self.status, fallback)

    def body(self) -> bytes:
        """The error as JSON."""
        return msgspec.json.encode(
            ErrorBody(ErrorDetail(self.message, self.type, self.param, self.code))
        )

    @classmethod
    def of(cls, refused: Refused) -> ApiError:
        """What the cluster refused."""
        code = {429: "queue_full", 503: "unavailable"}.get(refused.status)
        return cls(refused.status, refused.message, code=code, retry_after=refused.retry_after)
