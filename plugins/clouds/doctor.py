"""What `shuntserve doctor` says of the cloud that a machine is in."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

from attrs import frozen

from shuntserve_core.interfaces.check import ABSENT, OK, PROBLEM, WARNING, Finding

if TYPE_CHECKING:
    from shuntserve_core.config import Config

_SECONDS = 1.0
_TOKEN = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}


@frozen
class MetadataService:
    """Whether EC2's instance metadata answers: without it no interruption notice is heard."""

    endpoint: str = "http://169.254.169.254"
    """Base URL of the metadata service."""

    def findings(self, config: Config | None) -> Iterator[Finding]:
        """Ask for a token, and with it for the instance's life cycle."""
        tables = config.document.spot if config else ()
        wanted = any(table.name == "aws" for table in tables)
        try:
            token = self._ask("PUT", "/latest/api/token", _TOKEN)
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
            cycle = self._ask("GET", path, {"X-aws-ec2-metadata-token": token})
        except OSError as error:
            yield Finding("life cycle", WARNING, f"it does not say: {error}")
        else:
            yield Finding("life cycle", OK, cycle)

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(  # noqa: S310 - the service's own address
            self.endpoint + path, method=method, headers=headers
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_SECONDS) as answer:
            return str(answer.read().decode())
