"""The command: see the package."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shuntserve_core.testing.chaos.client import Answer, ask
from shuntserve_core.testing.chaos.cluster import (
    Served,
    memory,
    open_files,
    serving,
    shared_segments,
)
from shuntserve_core.testing.chaos.disturbances import KINDS, Chaos
from shuntserve_core.testing.chaos.requests import MODES, Asked, repeat, requests
from shuntserve_core.testing.chaos.verdict import Verdict, as_json, judge


def main() -> int:
    """Run; 0 if nothing was lost and nothing differs."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("config", type=Path, help="TOML file of the cluster")
    parser.add_argument("--streams", type=int, default=1000, help="streams of each mode")
    parser.add_argument("--modes", default=",".join(MODES), help="of " + ", ".join(MODES))
    parser.add_argument("--kinds", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    parser.add_argument("--tokens", type=int, default=24, help="longest answer, in tokens")
    parser.add_argument("--concurrency", type=int, default=12, help="streams at once")
    parser.add_argument("--every", default="5,10", help="seconds between disturbances: least,most")
    parser.add_argument("--notice", type=float, default=8.0, help="seconds of a notice")
    parser.add_argument("--away", type=float, default=4.0, help="seconds until a node comes back")
    parser.add_argument("--strategy", help="instead of the file's")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the report to a file")
    options = parser.parse_args()
    report = asyncio.run(_run(options))
    text = json.dumps(report, indent=2)
    if options.json:
        options.json.write_text(text)
    print(text)  # noqa: T201
    return 0 if report["passed"] else 1


async def _run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        directory = Path(scratch)
        config = own_config(options.config, directory, strategy=options.strategy)
        log = directory / "serve.log"
        try:
            async with serving(config, directory / "state", log) as served:
                report = await _campaign(served, options)
        except Exception:
            print(log.read_text()[-4000:], file=sys.stderr)  # noqa: T201
            raise
        return report


def own_config(config: Path, directory: Path, *, strategy: str | None = None) -> Path:
    """A copy of a configuration with a state directory, port and, if given, strategy of its own."""
    text = config.read_text()
    base = config.resolve().parent
    text = re.sub(
        r'"(\.\.?/[^"]*)"', lambda match: json.dumps(str((base / match[1]).resolve())), text
    )
    text = re.sub(r"(?m)^state_dir = .*$", f'state_dir = "{directory / "state"}"', text)
    text = re.sub(r"(?m)^port = .*$", "port = 0", text)
    if strategy:
        text = re.sub(r"(?m)^strategy = .*\n", "", text)
        text = text.replace("[serve]\n", f'[serve]\nstrategy = "{strategy}"\n')
    copy = directory / config.name
    copy.write_text(text)
    return copy


async def _campaign(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    model = (await (await served.session.get(f"{served.url}/v1/models")).json())["data"][0]["id"]
    before = _resources(served)
    modes: dict[str, Any] = {}
    for mode in options.modes.split(","):
        asked = requests(model, mode, options.tokens)[: options.streams]
        undisturbed = {a.asked.name: a for a in await _load(served, asked, options.concurrency)}
        chaos = Chaos(
            served,
            seed=options.seed,
            every=tuple(float(part) for part in options.every.split(",")),  # type: ignore[arg-type]
            notice=options.notice,
            away=options.away,
            kinds=tuple(options.kinds.split(",")),
        )
        began, disturbing = time.time(), asyncio.create_task(chaos.run())
        answers = await _load(served, list(repeat(asked, options.streams)), options.concurrency)
        disturbing.cancel()
        await asyncio.wait({disturbing})
        verdict: Verdict = judge(answers, undisturbed, chaos.done)
        modes[mode] = {**as_json(verdict), "seconds": time.time() - began}
        await chaos.restore_all()
    status = await served.status()
    return {
        "passed": all(part["passed"] for part in modes.values())
        and status["requests"]["in_flight"] == 0,
        "modes": modes,
        "in_flight_at_end": status["requests"]["in_flight"],
        "counters": status["requests"]["counters"],
        "transitions": status["transitions"],
        "weights_read_bytes": {n["name"]: n["weights_read_bytes"] for n in status["nodes"]},
        "resources": {"before": before, "after": _resources(served)},
    }


async def _load(served: Served, asked: Sequence[Asked], concurrency: int) -> list[Answer]:
    """All requests, `concurrency` at a time."""
    waiting = iter(asked)
    answers: list[Answer] = []

    async def worker() -> None:
        for request in waiting:
            answers.append(await ask(served.session, served.url, request))

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return answers


def _resources(served: Served) -> dict[str, int]:
    processes = served.processes()
    return {
        "processes": len(processes),
        "open_files": open_files(processes),
        "memory_bytes": memory(processes),
        "shared_segments": shared_segments(),
    }


if __name__ == "__main__":
    sys.exit(main())
