"""`python -m shuntserve_core.node`: run a node agent until it is told to end.

Prints one JSON line with its URL once it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import ssl
import sys
import time
from pathlib import Path

from aiohttp import web

from shuntserve_core.errors import UserError
from shuntserve_core.files import private_dir
from shuntserve_core.node.agent import Agent
from shuntserve_core.node.server import make_app


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="shuntserve-node", description=__doc__)
    parser.add_argument("--name", required=True, help="the node's name: <instance type>#<number>")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs to manage")
    parser.add_argument("--run-dir", type=Path, required=True, help="sockets")
    parser.add_argument("--log-dir", type=Path, help="logs; --run-dir unless given")
    parser.add_argument("--token-file", type=Path, required=True, help="file with the secret")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument(
        "--tls-dir", type=Path, help="certificate.pem, key.pem and authority.pem: members alone"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--orphan-seconds", type=float, default=600.0, help="end after so long without any contact"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        asyncio.run(_run(options))
    except UserError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{options.host}:{options.port}: {error}")


async def _run(options: argparse.Namespace) -> None:
    os.umask(0o077)  # nothing that the agent or its children make is for others
    private_dir(options.run_dir)
    log_dir = private_dir(options.log_dir or options.run_dir)
    token = options.token_file.read_text().strip()
    agent = Agent(
        options.name, options.gpus, options.run_dir, device=options.device, log_dir=log_dir
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stopped.set)
    runner = web.AppRunner(make_app(agent, token), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    tls = _tls(options.tls_dir)
    site = web.TCPSite(runner, options.host, options.port, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    scheme = "http" if tls is None else "https"
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    print(json.dumps({"url": url, "pid": os.getpid()}), flush=True)  # noqa: T201
    with contextlib.suppress(OSError):
        _detach_output()
    while not agent.stopped.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(agent.stopped.wait(), 1.0)
        if time.monotonic() - agent.last_contact > options.orphan_seconds:
            logging.warning("no contact for %.0f s: ending", options.orphan_seconds)
            break
    await agent.close()
    await runner.cleanup()


def _tls(directory: Path | None) -> ssl.SSLContext | None:
    if directory is None:
        return None
    from shuntserve_core.trust.authority import Identity

    return Identity.at(directory).server()


def _detach_output() -> None:
    """Nobody reads standard output after the first line: writes must not fail when it closes."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


if __name__ == "__main__":
    main()
