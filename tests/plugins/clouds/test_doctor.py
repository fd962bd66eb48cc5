"""What the doctor says of EC2's metadata service."""

from __future__ import annotations

import asyncio

from shuntserve_core.testing.ec2_metadata import Ec2Metadata
from shuntserve_plugins.clouds.doctor import MetadataService


async def _found(endpoint: str) -> dict[str, str]:
    check = MetadataService(endpoint)
    findings = await asyncio.to_thread(lambda: list(check.findings(None)))
    return {finding.what: finding.state for finding in findings}


async def test_an_instance_that_answers() -> None:
    service = Ec2Metadata()
    endpoint = await service.start()
    try:
        assert (await _found(endpoint))["metadata"] == "ok"
        service.status = 403
        assert (await _found(endpoint))["metadata"] == "warning"
    finally:
        await service.close()


async def test_a_machine_outside_ec2() -> None:
    assert await _found("http://127.0.0.1:1") == {"metadata": "absent"}
