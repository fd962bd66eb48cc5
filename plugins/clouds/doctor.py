"""What `shuntserve doctor` says of the cloud that a machine is in."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shuntserve_core.interfaces.check import ABSENT, OK, PROBLEM, WARNING, Finding

if TYPE_CHECKING:
    from shuntserve_core.config import Config

_SECONDS = 1.0
_TOKEN = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}


_ENDPOINT = "http://169.254.169.254"


class MetadataService:
    """Whether EC2's instance metadata answers: without it no interruption notice is heard.

    It is asked where the configuration's `aws` source would ask it.
    """

    def __init__(self, endpoint: str = "") -> None:
        self._endpoint = endpoint

    def findings(self, config: Config | None) -> Iterator[Finding]:
        """Ask for a token, and with it for the instance's life cycle."""
        tables = [t for t in (config.document.spot if config else ()) if t.name == "aws"]
        given = [str(table.options["endpoint"]) for table in tables if "endpoint" in table.options]
        base = self._endpoint or (given[0] if given else _ENDPOINT)
        wanted = bool(tables)
        try:
            token = _ask(base, "PUT", "/latest/api/token", _TOKEN)
        except urllib.error.HTTPError as error:
            remedy = "enable the metadata service of this instance, with version 2"
            state = PROBLEM if wanted else WARNING
            yield Finding(
                "metadata", state, f"it refuses a token: {error}", remedy if wanted else ""
            )
            return
        except OSError as error:
            remedy = "in a container allow a hop limit of 2" if wanted else ""
            detail = f"it does not answer: {error}"
            yield Finding("metadata", WARNING if wanted else ABSENT, detail, remedy)
            return
        yield Finding("metadata", OK, "it answers, with version 2")
        path = "/latest/meta-data/instance-life-cycle"
        try:
            cycle = _ask(base, "GET", path, {"X-aws-ec2-metadata-token": token})
        except OSError as error:
            yield Finding("life cycle", WARNING, f"it does not say: {error}")
        else:
            yield Finding("life cycle", OK, cycle)


def _ask(base: str, method: str, path: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(  # noqa: S310 - the service's own address
        base + path, method=method, headers=headers
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_SECONDS) as answer:
        return str(answer.read().decode())
