"""The command: see the package."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from shuntserve_core.testing.chaos.campaign import Campaign, run
from shuntserve_core.testing.chaos.cluster import serving
from shuntserve_core.testing.chaos.disturbances import HANG, KINDS
from shuntserve_core.testing.chaos.requests import MODES


def main() -> int:
    """Run; 0 if nothing was lost and nothing differs."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("config", type=Path, help="TOML file of the cluster")
    parser.add_argument("--streams", type=int, default=1000, help="streams of each mode")
    parser.add_argument("--minutes", type=float, help="go on for so long instead (a soak)")
    parser.add_argument("--modes", default=",".join(MODES), help="of " + ", ".join(MODES))
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}, {HANG}")
    parser.add_argument("--tokens", type=int, default=24, help="longest answer, in tokens")
    parser.add_argument("--concurrency", type=int, default=12, help="streams at once")
    parser.add_argument("--every", default="5,10", help="seconds between disturbances: least,most")
    parser.add_argument("--notice", type=float, default=8.0, help="seconds of a notice")
    parser.add_argument("--away", type=float, default=4.0, help="seconds until a node comes back")
    parser.add_argument("--strategy", help="instead of the file's")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the report to a file")
    options = parser.parse_args()
    least, most = (float(part) for part in options.every.split(","))
    campaign = Campaign(
        modes=tuple(options.modes.split(",")),
        kinds=tuple(options.kinds.split(",")),
        streams=options.streams,
        minutes=options.minutes,
        tokens=options.tokens,
        concurrency=options.concurrency,
        every=(least, most),
        notice=options.notice,
        away=options.away,
        seed=options.seed,
    )
    report = asyncio.run(_run(options.config, options.strategy, campaign))
    text = json.dumps(report, indent=2)
    if options.json:
        options.json.write_text(text)
    print(text)  # noqa: T201
    return 0 if report["passed"] else 1


async def _run(config: Path, strategy: str | None, campaign: Campaign) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        directory = Path(scratch)
        own = own_config(config, directory, strategy=strategy)
        log = directory / "serve.log"
        try:
            async with serving(own, directory / "state", log) as served:
                return await run(served, campaign)
        except Exception:
            print(log.read_text()[-4000:], file=sys.stderr)  # noqa: T201
            raise


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


if __name__ == "__main__":
    sys.exit(main())
