"""One connection between control plane and engine: all requests of a pipeline on it, msgpack
frames, one frame an engine step.

* `frames`: bytes to messages and back
* `messages`: what the messages are, and how requests and outputs look in them
* `handshake`: versions, and proof on both sides of knowing the token
* `connection`: what both ends share: limits, heartbeats, cutting with a reason
* `server`: for engines
* `client`: for the control plane
"""

from shuntserve_core.link.client import LinkClient
from shuntserve_core.link.connection import LinkPolicy
from shuntserve_core.link.server import LinkServer

__all__ = ["LinkClient", "LinkPolicy", "LinkServer"]
