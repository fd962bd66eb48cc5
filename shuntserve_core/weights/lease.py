"""A lock on one model in a store, so that two pushes cannot interleave.

It is an object that says who holds it and until when.  The holder renews it; one whose holder was
killed is taken over when it runs out, or at once by a process that can see that the holder died.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from attrs import asdict, define, frozen

from shuntserve_core.errors import UserError
from shuntserve_core.foreign import parse_json
from shuntserve_core.interfaces.store import (
    ObjectMissing,
    StoreError,
    VersionConflict,
    WeightStore,
)
from shuntserve_core.processes import has_ended, identity_of

LEASE_SECONDS = 60.0
"""How long a lock outlives a holder that nobody can see."""


@frozen
class _Holder:
    token: str
    host: str
    process: str
    """Machine, process-id namespace, process id and its start: names one process for ever."""
    expires: float
    """Seconds since the epoch, by the holder's clock."""


@define(eq=False)
class Lease:
    """A lock that this process holds."""

    _store: WeightStore
    _key: str
    _token: str
    _version: str
    lost: str = ""
    """Why it is no longer held; empty while it is."""

    def check(self) -> None:
        """Raise `StoreError` if somebody else may have taken over."""
        if self.lost:
            raise StoreError(
                f"the lock was lost: {self.lost}", where=self._key, remedy="push again"
            )

    def renew(self) -> None:
        """Hold it for another while, or note that it is lost."""
        try:
            self._version = self._store.put_if(self._key, _describe(self._token), self._version)
        except VersionConflict:
            self.lost = "another push took it over"

    def release(self) -> None:
        """Give it back, unless somebody else has it."""
        with contextlib.suppress(StoreError):
            _, version = self._store.get(self._key)
            if version == self._version:
                self._store.delete([self._key])


@contextlib.contextmanager
def hold_lease(store: WeightStore, key: str, *, wait: float = 0.0) -> Iterator[Lease]:
    """Hold the lock `key` while the block runs.

    Waits up to `wait` seconds for another holder, then raises `UserError` that says who it is.
    """
    lease = _acquire(store, key, time.monotonic() + wait)
    stop = threading.Event()
    renewer = threading.Thread(target=_keep, args=(lease, stop), name="renew-lock", daemon=True)
    renewer.start()
    try:
        yield lease
    finally:
        stop.set()
        renewer.join()
        lease.release()


def _keep(lease: Lease, stop: threading.Event) -> None:
    renewed = time.monotonic()
    while not stop.wait(LEASE_SECONDS / 4) and not lease.lost:
        try:
            lease.renew()
            renewed = time.monotonic()
        except StoreError as error:
            if time.monotonic() - renewed > LEASE_SECONDS / 2:
                lease.lost = f"it could not be renewed: {error}"


def _acquire(store: WeightStore, key: str, deadline: float) -> Lease:
    token = uuid.uuid4().hex
    while True:
        holder, version = _read(store, key)
        if holder is None or _is_over(holder):
            try:
                return Lease(store, key, token, store.put_if(key, _describe(token), version))
            except VersionConflict:
                continue
        if time.monotonic() >= deadline:
            raise _held(holder, store, key)
        time.sleep(0.5)


def _held(holder: _Holder, store: WeightStore, key: str) -> UserError:
    left = max(0, holder.expires - time.time())
    return UserError(
        f"{holder.host} is pushing this model",
        where=f"{store.url}: {key}",
        remedy=f"wait for it (--wait SECONDS); if it died, the lock ends in {left:.0f} s",
    )


def _read(store: WeightStore, key: str) -> tuple[_Holder | None, str | None]:
    try:
        data, version = store.get(key)
    except ObjectMissing:
        return None, None
    try:
        values: dict[str, Any] = parse_json(data)
        return _Holder(**values), version
    except (ValueError, TypeError):
        return None, version


def _describe(token: str) -> bytes:
    holder = _Holder(token, socket.gethostname(), identity_of(), time.time() + LEASE_SECONDS)
    return json.dumps(asdict(holder)).encode()


def _is_over(holder: _Holder) -> bool:
    return time.time() > holder.expires or has_ended(holder.process)
