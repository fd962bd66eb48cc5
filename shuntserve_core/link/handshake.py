"""Who is there: versions first, then proof on both sides of knowing the token.

Each side sends a nonce and proves the token by an HMAC over both nonces, so that the token itself
never travels, neither side can be fooled by an impostor, and an old proof is worth nothing.  The
connection is not encrypted: beyond one machine it belongs on a private network.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from shuntserve_core.link import messages as m
from shuntserve_core.link.frames import Message, ProtocolError

PROTOCOL = "shuntserve-link"
VERSION = 2
HANDSHAKE_BYTES = 4096
"""Largest frame before the peer is trusted."""
_NONCE_BYTES = 16


class Handshake:
    """One side of one handshake; the proofs of the sides differ, so none can be sent back."""

    def __init__(self, token: str) -> None:
        self._key = token.encode()
        self._client = b""
        self._server = b""

    def hello(self) -> Message:
        """Client: the first word."""
        self._client = secrets.token_bytes(_NONCE_BYTES)
        return (m.HELLO, PROTOCOL, VERSION, self._client)

    def challenge(self, message: Message) -> Message:
        """Server: answer a HELLO.  Raises `ProtocolError`."""
        if len(message) != 4 or message[:2] != (m.HELLO, PROTOCOL):
            raise ProtocolError("not a link client")
        if message[2] != VERSION:
            raise ProtocolError(f"link version {message[2]!r} is not {VERSION}, the engine's")
        self._client = _nonce(message[3])
        self._server = secrets.token_bytes(_NONCE_BYTES)
        return (m.CHALLENGE, VERSION, self._server, self._proof(b"server"))

    def prove(self, message: Message) -> Message:
        """Client: check a CHALLENGE and answer it.  Raises `ProtocolError`."""
        if len(message) != 4 or message[0] != m.CHALLENGE:
            raise ProtocolError("not a link server")
        if message[1] != VERSION:
            raise ProtocolError(f"the engine's link version {message[1]!r} is not {VERSION}")
        self._server = _nonce(message[2])
        self._check(message[3], b"server", "the engine")
        return (m.PROOF, self._proof(b"client"))

    def verify(self, message: Message) -> None:
        """Server: check a PROOF.  Raises `ProtocolError`."""
        if len(message) != 2 or message[0] != m.PROOF:
            raise ProtocolError("expected a proof")
        self._check(message[1], b"client", "the client")

    def _proof(self, side: bytes) -> bytes:
        text = side + self._client + self._server
        return hmac.new(self._key, text, hashlib.sha256).digest()

    def _check(self, proof: object, side: bytes, who: str) -> None:
        if not isinstance(proof, bytes) or not hmac.compare_digest(proof, self._proof(side)):
            raise ProtocolError(f"wrong token: {who} does not know the secret of this link")


def _nonce(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != _NONCE_BYTES:
        raise ProtocolError(f"a nonce is {_NONCE_BYTES} bytes")
    return value
