"""OpenAI's JavaScript client on a page of another origin, in a real Chromium.

Needs `tools/browser` to have been run; without what it installs these tests are skipped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from shuntserve_plugins.frontdoors.openai.keys import ApiKey
from tests.plugins.frontdoors.conftest import MODEL, Serve

HERE = Path(__file__).with_name("browser")
CHROMIUM = shutil.which("chromium")
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or NODE is None or not (HERE / "node_modules" / "openai").is_dir(),
    reason="needs chromium, node and their modules: run tools/browser",
)
KEY = "k7Qz-31xW-vv09-PLkt-aa25"
PAGE = """<!doctype html><title>page</title><script type="module">
import OpenAI from "/openai/index.mjs";
const client = new OpenAI({
  baseURL: "BASE/v1", apiKey: "KEY", dangerouslyAllowBrowser: true, maxRetries: 0,
});
const messages = [{ role: "user", content: "fox" }];
const said = {};
try {
  const { data, response } = await client.chat.completions
    .create({ model: "MODEL", messages, max_tokens: 5 }).withResponse();
  said.whole = data.choices[0].message.content;
  said.id = response.headers.get("x-request-id");
  const stream = await client.chat.completions
    .create({ model: "MODEL", messages, max_tokens: 5, stream: true });
  said.streamed = "";
  for await (const chunk of stream) said.streamed += chunk.choices[0]?.delta.content ?? "";
  await client.chat.completions.create({ model: "MODEL", messages, temperature: 9 })
    .catch((error) => { said.status = error.status; });
} catch (error) {
  said.error = String(error);
}
window.said = said;
</script>"""


@pytest_asyncio.fixture
async def origin() -> AsyncIterator[tuple[str, dict[str, str]]]:
    """A server of pages: its origin, and what stands for the words in `PAGE`."""
    words: dict[str, str] = {}

    async def page(request: web.Request) -> web.Response:
        text = PAGE
        for word, value in words.items():
            text = text.replace(word, value)
        return web.Response(text=text, content_type="text/html")

    application = web.Application()
    application.router.add_get("/", page)
    application.router.add_static("/openai", HERE / "node_modules" / "openai")
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield f"http://localhost:{port}", words
    await runner.cleanup()


async def visit(url: str) -> dict[str, Any]:
    assert NODE is not None
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        NODE, str(HERE / "chat.mjs"), CHROMIUM, url, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    said: dict[str, Any] = json.loads(out)
    return said


@pytest.mark.parametrize("key", ["", KEY])
async def test_the_official_client_on_a_page(
    serve: Serve, origin: tuple[str, dict[str, str]], key: str
) -> None:
    url, words = origin
    keys = (ApiKey("page", sha256=hashlib.sha256(KEY.encode()).hexdigest()),) if key else ()
    served = await serve(cors_origins=(url,), api_keys=keys)
    words.update(BASE=served.url, KEY=key or "none", MODEL=MODEL)
    said = await visit(url)
    assert "error" not in said
    assert said["whole"] == said["streamed"] != ""
    assert said["id"]
    assert said["status"] == 400


async def test_a_page_that_was_not_named_gets_nothing(
    serve: Serve, origin: tuple[str, dict[str, str]]
) -> None:
    url, words = origin
    served = await serve()
    words.update(BASE=served.url, KEY="none", MODEL=MODEL)
    said = await visit(url)
    assert "Connection error" in said["error"]
    assert "whole" not in said
    assert not served.backend.submitted
