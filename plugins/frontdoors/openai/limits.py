"""What a client may use: sizes, times and connections."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge, gt


@frozen
class Limits:
    """Limits that hold for every client; seconds and bytes."""

    body_bytes: int = field(default=8 << 20, validator=gt(0))
    """Largest request body."""
    header_bytes: int = field(default=16 << 10, validator=gt(0))
    """Longest request line, and longest header."""
    head_bytes: int = field(default=16 << 10, validator=gt(0))
    """The request line and all headers of a request together."""
    headers: int = field(default=64, validator=gt(0))
    """Most headers in a request."""
    header_seconds: float = field(default=10.0, validator=gt(0))
    """First byte of a request to the end of its headers."""
    body_seconds: float = field(default=30.0, validator=gt(0))
    """End of the headers to the end of the body."""
    idle_seconds: float = field(default=75.0, validator=gt(0))
    """A connection without a request."""
    write_seconds: float = field(default=30.0, validator=gt(0))
    """A client that does not read what is sent to it."""
    request_seconds: float = field(default=1800.0, validator=gt(0))
    """A request in all."""
    connections: int = field(default=16384, validator=gt(0))
    """Open connections."""
    connections_per_address: int = field(default=4096, validator=gt(0))
    """Open connections of one client address (of IPv6: of one /64 network)."""
    handshakes: int = field(default=256, validator=gt(0))
    """TLS handshakes under way."""
    choices: int = field(default=128, validator=ge(1))
    """Answers in one request: prompts times `n`."""
    text_workers: int = field(default=2, validator=ge(1))
    """Processes that read long requests: JSON, chat templates, tokens."""
    text_queue: int = field(default=64, validator=ge(1))
    """Long requests of one key that may wait for such a process."""
    text_seconds: float = field(default=10.0, validator=gt(0))
    """Processor time for reading a request, once it is its turn."""
    model_defaults: bool = True
    """Whether the model's `generation_config.json` gives defaults for sampling."""
