"""What clients talk to, bundled."""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve_core.hookspecs import Provider, hookimpl


@hookimpl
def shuntserve_register_frontdoors() -> Iterable[Provider]:
    """The OpenAI-compatible HTTP server."""
    yield Provider(
        "openai",
        "shuntserve_plugins.frontdoors.openai.door:OpenAIFrontDoor",
        "The default: OpenAI's HTTP API (chat, completions, models) and metrics",
    )
