"""What a request leaves behind: nothing that waits for the garbage collector."""

from __future__ import annotations

import gc

import pytest

from shuntserve_core.testing.frontdoors import ScriptedBackend, fixed
from shuntserve_plugins.frontdoors.openai.choices import Choice
from shuntserve_plugins.frontdoors.openai.context import Call
from shuntserve_plugins.frontdoors.openai.generation import Generation
from tests.plugins.frontdoors.conftest import MODEL, Serve
from tests.plugins.frontdoors.http import request, send

KINDS = (Call, Choice, Generation)


def alive() -> list[str]:
    # By type: `isinstance` asks objects for their class, and some of other libraries mind.
    return [type(thing).__name__ for thing in gc.get_objects() if type(thing) in KINDS]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_request_leaves_no_cycles(serve: Serve, stream: bool, fails: bool) -> None:
    script = fixed((5, 6, 7), "error" if fails else "stop", "lost" if fails else "")
    served = await serve(ScriptedBackend(script, keep_journals=False))
    body = {"model": MODEL, "prompt": "fox", "max_tokens": 3, "n": 2, "stream": stream}
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            await send(served.address, request(body))
        left = alive()
    finally:
        gc.enable()
    # The last request's call may still be in the hands of its connection.
    assert left.count("Choice") == left.count("Generation") == 0
    assert left.count("Call") <= 1
