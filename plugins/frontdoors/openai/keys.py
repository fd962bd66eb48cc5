"""API keys: kept as SHA-256 hashes, compared in constant time, each with its own limits."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

from attrs import define, field, frozen
from attrs.validators import ge, gt

from shuntserve_core.config.fields import RelativePath
from shuntserve_core.errors import UserError
from shuntserve_plugins.frontdoors.openai.errors import ApiError

MIN_LENGTH = 20
MIN_DISTINCT = 8
_PLACEHOLDERS = ("", "EMPTY", "changeme", "key", "none", "password", "secret", "sk-1234", "test")
_REMEDY = "make one with `openssl rand -hex 24`"


@frozen
class ApiKey:
    """A key that clients may present, from exactly one of `sha256`, `env` and `file`."""

    name: str
    """Shown in logs and metrics instead of the key."""
    sha256: str = ""
    """SHA-256 of the key, in hexadecimal."""
    env: str = ""
    """Environment variable that holds the key itself."""
    file: Annotated[str, RelativePath()] = ""
    """File that holds the key itself."""
    max_in_flight: int = field(default=0, validator=ge(0))
    """Answers at once: `n` of them, and every prompt of a list, count each; 0 is no limit."""
    requests_per_minute: int = field(default=0, validator=ge(0))
    """Answers asked for, and requests that are refused or only count tokens; 0 is no limit."""
    tokens_per_minute: int = field(default=0, validator=ge(0))
    """Tokens of prompts and output, for every answer; 0 is no limit."""
    max_tokens: int = field(default=0, validator=ge(0))
    """Tokens of output in one request, all its answers together; 0 is no limit."""

    weight: float = field(default=1.0, validator=gt(0))
    """Share of the cluster under load, beside other keys': 2 gets twice what 1 gets."""

    def digest(self) -> bytes:
        """SHA-256 of the key; raises `UserError` where it is missing or easy to guess."""
        where = f"frontdoor.api_keys ({self.name})"
        given = [source for source in (self.sha256, self.env, self.file) if source]
        if len(given) != 1:
            raise UserError(
                "give exactly one of sha256, env and file",
                where=where,
                remedy="sha256 of the key, env with its variable, or file with it",
            )
        if self.sha256:
            return _parse_digest(self.sha256, where)
        key = os.environ.get(self.env, "") if self.env else _read(self.file, where)
        if not key:
            raise UserError(
                f"the environment variable {self.env} is empty",
                where=where,
                remedy="set it to the key",
            )
        if len(key) < MIN_LENGTH or len(set(key)) < MIN_DISTINCT:
            raise UserError(
                f"the key is too easy to guess: it needs {MIN_LENGTH} characters, "
                f"{MIN_DISTINCT} of them different",
                where=where,
                remedy=_REMEDY,
            )
        return hashlib.sha256(key.encode()).digest()


def _read(file: str, where: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(
            f"cannot read {file}: {reason}",
            where=where,
            remedy="name a file that holds the key and this user may read",
        ) from error


def _parse_digest(text: str, where: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise UserError(
            "sha256 is not 64 hexadecimal digits",
            where=where,
            remedy="make one: printf %s KEY | sha256sum",
        )
    if any(hashlib.sha256(word.encode()).digest() == digest for word in _PLACEHOLDERS):
        raise UserError("this is the hash of a placeholder", where=where, remedy=_REMEDY)
    return digest


@define
class Bucket:
    """Holds a minute's worth of something, and fills steadily."""

    per_minute: int
    """0 is no limit."""
    _level: float = field(init=False)
    _checked_at: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self._level = float(self.per_minute)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much may be taken; 0 if it may be now."""
        if not self.per_minute:
            return 0.0
        gained = (now - self._checked_at) * self.per_minute / 60
        self._level = min(self.per_minute, self._level + gained)
        self._checked_at = now
        return max(0.0, (amount - self._level) * 60 / self.per_minute)

    def take(self, amount: float) -> None:
        """Take so much, whether or not it is there; less than nothing gives it back."""
        self._level -= amount


@define(eq=False)
class Stay:
    """A request that is being answered, as its key's limits see it."""

    answers: int = 1
    reserved: int = 0
    """Tokens of output that it asked for, and that are counted already."""
    produced: Callable[[], int] = int
    """Tokens of output so far."""

    @property
    def owed(self) -> int:
        """Tokens produced that are not counted yet."""
        return max(0, self.produced() - self.reserved)


@define(eq=False)
class KeyUse:
    """A key and what it is being used for right now."""

    key: ApiKey
    digest: bytes
    in_flight: int = 0
    """Answers."""
    _requests: Bucket = field(init=False)
    _tokens: Bucket = field(init=False)
    _stays: set[Stay] = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        self._requests = Bucket(self.key.requests_per_minute)
        self._tokens = Bucket(self.key.tokens_per_minute)

    def arrive(self, now: float) -> None:
        """Count a request, whatever becomes of it; raises `ApiError` 429 for one too many."""
        self._take(self._requests, 1, now, "requests")

    def enter(self, now: float, stay: Stay, prompt_tokens: int = 0) -> None:
        """Count a request's answers in; raises `ApiError` 429 where there is no room for them now,
        and 400 where there never is."""
        self._check_in_flight(stay.answers)
        extra = stay.answers - 1
        needed = prompt_tokens + stay.reserved
        if self._tokens.per_minute:
            owed = sum(other.owed for other in self._stays)
            self._check(self._tokens, max(needed, 1), now, "tokens", owed)
        if extra:
            self._take(self._requests, extra, now, "requests", whole=stay.answers)
        self._tokens.take(needed)
        self.in_flight += stay.answers
        self._stays.add(stay)

    def leave(self, stay: Stay) -> None:
        """Count a request out, and give back what it did not use."""
        self.in_flight -= stay.answers
        self._stays.discard(stay)
        self._tokens.take(stay.produced() - stay.reserved)

    def _check_in_flight(self, answers: int) -> None:
        most = self.key.max_in_flight
        if not most or self.in_flight + answers <= most:
            return
        raise ApiError(
            400 if answers > most else 429,
            f"This API key may have {most} requests in flight; each answer counts.",
            code="too_many_in_flight",
            retry_after=None if answers > most else 1,
        )

    def _take(
        self, bucket: Bucket, amount: int, now: float, what: str, whole: int | None = None
    ) -> None:
        self._check(bucket, amount, now, what, whole=whole)
        bucket.take(amount)

    def _check(
        self,
        bucket: Bucket,
        amount: int,
        now: float,
        what: str,
        owed: int = 0,
        whole: int | None = None,
    ) -> None:
        wait = bucket.wait(amount + owed, now)
        if not wait:
            return
        never = (whole or amount) > bucket.per_minute
        raise ApiError(
            400 if never else 429,
            f"This API key may make {bucket.per_minute} requests a minute; each answer counts."
            if what == "requests"
            else f"This API key may use {bucket.per_minute} tokens a minute.",
            code="rate_limit_exceeded",
            retry_after=None if never else wait,
        )


class KeyRing:
    """Every key that is known; an empty ring lets everybody in."""

    def __init__(self, keys: Iterable[ApiKey], clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `UserError` for a key that cannot be read or is weak."""
        self._uses = [KeyUse(key, key.digest()) for key in keys]
        names = [use.key.name for use in self._uses]
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"two keys are called {name!r}",
                    where="frontdoor.api_keys",
                    remedy="give each a name of its own",
                )
        self.clock = clock

    def __bool__(self) -> bool:
        """Whether a key is needed."""
        return bool(self._uses)

    def find(self, authorization: str | None) -> KeyUse | None:
        """The key of an `Authorization` header; None if none is needed.

        Raises `ApiError` 401 if one is needed and this is not it.
        """
        if not self._uses:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        found = None
        if scheme.lower() == "bearer":
            digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
            for use in self._uses:  # all of them: the time says nothing of which one it was
                if hmac.compare_digest(use.digest, digest):
                    found = use
        if found is None:
            raise ApiError(
                401,
                "Incorrect API key provided."
                if key
                else "You did not provide an API key: "
                "use an Authorization header with 'Bearer' and the key.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found
