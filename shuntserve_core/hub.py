"""The Hugging Face hub, asked without its client's retries and lines when it is out of reach."""

from __future__ import annotations

import logging
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

PATIENCE = 5.0
"""Seconds to wait for an answer to a connection."""


def out_of_reach(endpoint: str | None = None, patience: float = PATIENCE) -> str:
    """Why no connection to the hub can be made, in a few words; empty where one can.

    Behind a proxy nothing is tried: the client must find out.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    url = urlsplit(endpoint or constants.ENDPOINT)
    host, port = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
    if urllib.request.getproxies().get(url.scheme) and not urllib.request.proxy_bypass(host):
        return ""
    try:
        socket.create_connection((host, port), timeout=patience).close()
    except OSError as error:
        return f"{host} cannot be reached ({error.strerror or error})"
    return ""


@contextmanager
def quietly() -> Iterator[None]:
    """Without the client's own warnings and retries on the terminal."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
