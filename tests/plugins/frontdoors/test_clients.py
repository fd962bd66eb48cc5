"""Clients that people use, as they are published: what works is what the manual says works.

Needs `tools/clients` and `tools/browser` to have been run; without what they install these tests
are skipped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from shuntserve_core.interfaces.frontdoor import Refused, Sink
from shuntserve_core.journal import Journal
from shuntserve_core.testing.frontdoors import FEATURES, Reply, ScriptedBackend
from shuntserve_core.text import TextTokenizer
from shuntserve_plugins.frontdoors.openai.keys import ApiKey
from tests.plugins.frontdoors.conftest import Serve
from tests.plugins.frontdoors.http import until

HERE = Path(__file__).with_name("clients")
PYTHON = HERE / ".venv" / "bin" / "python"
NODE = shutil.which("node")
NODE_CLIENT = HERE.with_name("browser") / "node_modules" / "openai"
PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "use-clients.md"
SCRIPTS = {
    "openai (Python)": "openai_python.py",
    "openai (Node)": "openai_node.mjs",
    "LangChain": "langchain_python.py",
    "LiteLLM": "litellm_python.py",
}
ENVIRONMENT = {
    "PATH": os.environ.get("PATH", ""),
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "NO_PROXY": "*",
}


class Refusing(ScriptedBackend):
    """Refuses what comes first, once for each refusal that is left."""

    refusals: list[Refused]

    def submit(self, journal: Journal, sink: Sink) -> None:
        if self.refusals:
            raise self.refusals.pop()
        super().submit(journal, sink)


def promised(client: str) -> dict[str, str]:
    """The table's column of a client: `yes` or `no` by what is tried; dashes are left out."""
    rows = [
        [cell.strip() for cell in line.strip("| \n").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    column = rows[0].index(client)
    return {row[0]: row[column] for row in rows[2:] if row[column] != "-"}


def clean(said: dict[str, str]) -> dict[str, str]:
    return {name: "yes" if word == "yes" else "no" for name, word in said.items()}


async def start(serve: Serve, tokenizer: TextTokenizer) -> tuple[dict[str, str], ScriptedBackend]:
    """Servers in every mood: their addresses by name, and the backend of the slow one."""

    def script(journal: Journal) -> Reply:
        text = '{"answer": "yes"}' if journal.sampling.guided else "one two three"
        return Reply((*tokenizer.encode(text), tokenizer.stop_ids[0]), "stop")

    def refusing(*refusals: Refused) -> ScriptedBackend:
        backend = Refusing(script=script)
        backend.refusals = list(refusals)
        return backend

    slow = ScriptedBackend(interval=0.1)
    key = ApiKey("some", sha256=hashlib.sha256(b"k7Qz-31xW-vv09-PLkt-aa25").hexdigest())
    always = 1000
    backends = {
        "full": ScriptedBackend(script=script),
        "plain": ScriptedBackend(script=script, features=FEATURES - {"guided"}),
        "busy once": refusing(Refused(429, "The queue is full", 1.0)),
        "down once": refusing(Refused(503, "Nobody serves", 1.0)),
        "full queue": refusing(*[Refused(429, "The queue is full", 1.0)] * always),
        "nobody": refusing(*[Refused(503, "Nobody serves", 1.0)] * always),
        "slow": slow,
    }
    urls = {name: (await serve(backend)).url for name, backend in backends.items()}
    urls["keys"] = (await serve(ScriptedBackend(script=script), api_keys=(key,))).url
    return {name: f"{url}/v1" for name, url in urls.items()}, slow


async def run(argv: Sequence[str | Path], urls: dict[str, str]) -> dict[str, str]:
    process = await asyncio.create_subprocess_exec(
        *map(str, argv),
        json.dumps(urls),
        stdout=asyncio.subprocess.PIPE,
        env=ENVIRONMENT | {"HOME": os.environ.get("HOME", "/")},
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    said: dict[str, str] = json.loads(out.splitlines()[-1])
    return said


@pytest.mark.timeout(240)
@pytest.mark.parametrize("client", SCRIPTS)
async def test_what_works_is_what_the_manual_says(
    serve: Serve, tokenizer: TextTokenizer, client: str
) -> None:
    script = HERE / SCRIPTS[client]
    node = script.suffix == ".mjs"
    if (NODE is None or not NODE_CLIENT.is_dir()) if node else not PYTHON.exists():
        pytest.skip("run tools/browser" if node else "run tools/clients")
    urls, slow = await start(serve, tokenizer)
    said = await run([NODE if node and NODE else PYTHON, script], urls)
    assert clean(said) == promised(client), said
    assert "tools is not supported: where the model is free" in said["free choice of tools"]
    # Who timed out, and who left a stream, is generated for no longer.
    await until(lambda: not slow.running)
    assert len(slow.cancelled) == len(slow.submitted) >= 2
