"""The hub's client: what is asked comes on standard input, what becomes of it goes to standard
output as lines of JSON, and whatever the client itself prints goes nowhere."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

_UNREACHABLE = ("Connect", "Timeout", "Proxy", "Network", "Protocol", "ReadError", "SSL", "Offline")
"""In the names of what the HTTP libraries of the client's versions raise without an answer."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)

Say = Callable[..., None]


def main() -> None:
    """Answer one request."""
    asked = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def say(**what: Any) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        say(kind="package", reason="reading from it needs the package huggingface_hub")
        return
    _listen_to_client(say)
    try:
        say(path=_fetch(asked, say))
    except Exception as error:  # whatever the versions of the client raise
        kind, reason = _classify(error, asked)
        say(kind=kind, reason=reason)


def _listen_to_client(say: Say) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            status = re.search(r"HTTP Error (\d{3})", text)
            say(said=text, **({"status": int(status[1])} if status else {}))

    logger = logging.getLogger("huggingface_hub")
    logger.handlers = [Handler()]
    logger.propagate = False


def _fetch(asked: dict[str, Any], say: Say) -> str:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RevisionNotFoundError

    say(endpoint=asked["endpoint"] or constants.ENDPOINT, cache=str(constants.HF_HUB_CACHE))
    if not asked["online"] or constants.HF_HUB_OFFLINE:
        return _snapshot(asked, local=True)
    try:
        HfApi(endpoint=asked["endpoint"]).model_info(
            asked["repository"],
            revision=asked["revision"] or constants.DEFAULT_REVISION,
            timeout=asked["patience"] / 2,
        )
    except RevisionNotFoundError:
        raise
    except Exception:
        # What is in the cache serves as well; of what is not, the first reason tells more.
        try:
            return _snapshot(asked, local=True)
        except FileNotFoundError as missing:
            if type(missing).__name__ == "IncompleteSnapshotError":
                raise
        raise
    say(found=True)
    return _snapshot(asked, local=False)


def _snapshot(asked: dict[str, Any], *, local: bool) -> str:
    from huggingface_hub import snapshot_download

    return str(
        snapshot_download(
            asked["repository"],
            revision=asked["revision"],
            endpoint=asked["endpoint"],
            allow_patterns=asked["patterns"] or None,
            local_files_only=local,
        )
    )


def _classify(error: BaseException, asked: dict[str, Any]) -> tuple[str, str]:
    """The kind of an error, and why in the words of whoever refused."""
    from huggingface_hub import constants, errors, get_token

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    if isinstance(error, errors.GatedRepoError):
        told = "its licence is to be accepted first"
        whose = "the account of HF_TOKEN has no access" if get_token() else told
        return "gated", f"the repository is gated: {whose} (HTTP {status})"
    if isinstance(error, errors.RevisionNotFoundError):
        return "revision", f"the repository has no revision {asked['revision']!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "missing", "there is no such repository on the hub, or it is not to be seen"
    if isinstance(error, errors.HfHubHTTPError):
        return _of_status(error, status, response)
    if type(error).__name__ == "IncompleteSnapshotError":
        return "incomplete", str(error).partition(" Re-run")[0]
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, FileNotFoundError):
        return "entry", str(error)
    if constants.HF_HUB_OFFLINE:
        return "offline", "HF_HUB_OFFLINE is set, and it is not in the hub's cache"
    if isinstance(error, OSError) and error.errno in _DISK:
        where = error.filename or constants.HF_HUB_CACHE
        return "disk", f"cannot write {where}: {(error.strerror or str(error)).lower()}"
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return _classify(error.__cause__, asked)
    if any(word in type(error).__name__ for word in _UNREACHABLE):
        what = str(error) or type(error).__name__
        return "unreachable", f"{_host(asked)} cannot be reached ({what})"
    if isinstance(error, ValueError | TypeError | KeyError | errors.FileMetadataError):
        return "strange", f"{_host(asked)} does not answer as the hub does ({error})"
    return "unreachable", f"{type(error).__name__}: {error}"


def _of_status(error: BaseException, status: int, response: Any) -> tuple[str, str]:
    from huggingface_hub import get_token

    said = response.headers.get("X-Error-Message") or str(error).strip().partition("\n")[0]
    if status == 429:
        wait = response.headers.get("Retry-After", "")
        later = f", for {wait} s" if wait.isdigit() else ""
        return "rate", f"the hub takes no more requests from here for now (HTTP 429){later}"
    if status == 401 and not (get_token() or "Invalid credentials" in said):
        return "missing", "it is not there for everybody (HTTP 401)"
    if status == 401:
        return "token", f"the hub refuses the token (HTTP 401): {said}"
    if status == 403:
        return "gated", f"the hub refuses access (HTTP 403): {said}"
    if status == 407:
        return "unreachable", "the proxy wants a login (HTTP 407)"
    if status >= 500:
        return "server", f"the hub has failed (HTTP {status})"
    return "strange", f"the hub answers HTTP {status}: {said}"


def _host(asked: dict[str, Any]) -> str:
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    endpoint = asked["endpoint"] or constants.ENDPOINT
    return urlsplit(endpoint).netloc or str(endpoint)


if __name__ == "__main__":
    main()
