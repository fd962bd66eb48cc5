"""One mode after the other: undisturbed answers first, then the same again under chaos."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from itertools import cycle, islice, takewhile
from typing import Any

from attrs import asdict, frozen

from shuntserve_core.testing.chaos.client import Answer, ask
from shuntserve_core.testing.chaos.cluster import Resources, Served, resources, shared_segments
from shuntserve_core.testing.chaos.disturbances import Chaos
from shuntserve_core.testing.chaos.requests import Asked, requests
from shuntserve_core.testing.chaos.verdict import as_json, judge


@frozen
class Campaign:
    """What to ask and how to disturb."""

    modes: tuple[str, ...]
    kinds: tuple[str, ...]
    streams: int
    """Of each mode, unless `minutes` is given."""
    minutes: float | None
    """How long to go on, all modes together."""
    tokens: int
    concurrency: int
    every: tuple[float, float]
    """Least and most seconds between disturbances."""
    notice: float
    away: float
    seed: int

    def asked(self, requests: Sequence[Asked]) -> Iterable[Asked]:
        """The requests of a mode, again and again."""
        if self.minutes is None:
            return islice(cycle(requests), self.streams)
        end = time.monotonic() + 60.0 * self.minutes / len(self.modes)
        return takewhile(lambda _: time.monotonic() < end, cycle(requests))


async def run(served: Served, campaign: Campaign) -> dict[str, Any]:
    """The report, as JSON."""
    model = (await (await served.session.get(f"{served.url}/v1/models")).json())["data"][0]["id"]
    modes: dict[str, Any] = {}
    before: dict[str, Any] = {}
    for mode in campaign.modes:
        asked = requests(model, mode, campaign.tokens)
        answers = await _ask_all(served, asked, campaign.concurrency)
        undisturbed = {answer.asked.name: answer for answer in answers}
        before = before or taken(served)
        modes[mode] = await _disturbed(served, campaign, asked, undisturbed)
    answers = await _ask_all(served, asked, campaign.concurrency)  # every engine has worked now
    status = await served.status()
    in_flight = status["requests"]["in_flight"]
    sound = all(answer.same_as(undisturbed[answer.asked.name]) for answer in answers)
    return {
        "passed": sound and in_flight == 0 and all(part["passed"] for part in modes.values()),
        "modes": modes,
        "in_flight_at_end": in_flight,
        "counters": status["requests"]["counters"],
        "transitions": status["transitions"],
        "weights_read_bytes": {n["name"]: n["weights_read_bytes"] for n in status["nodes"]},
        "resources": {"before": before, "after": taken(served)},
    }


async def _disturbed(
    served: Served,
    campaign: Campaign,
    asked: Sequence[Asked],
    undisturbed: dict[str, Answer],
) -> dict[str, Any]:
    chaos = Chaos(
        served,
        seed=campaign.seed,
        every=campaign.every,
        notice=campaign.notice,
        away=campaign.away,
        kinds=campaign.kinds,
    )
    began, disturbing = time.time(), asyncio.create_task(chaos.run())
    answers = await _ask_all(served, campaign.asked(asked), campaign.concurrency)
    disturbing.cancel()
    await asyncio.wait({disturbing})
    seconds = time.time() - began
    verdict = as_json(judge(answers, undisturbed, chaos.done))
    recovered = await chaos.restore_all()
    verdict["passed"] &= recovered
    return {**verdict, "recovered": recovered, "seconds": seconds}


async def _ask_all(served: Served, asked: Iterable[Asked], concurrency: int) -> list[Answer]:
    """All requests, `concurrency` at a time."""
    waiting = iter(asked)
    answers: list[Answer] = []

    async def worker() -> None:
        for request in waiting:
            answers.append(await ask(served.session, served.url, request))

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return answers


def taken(served: Served) -> dict[str, Any]:
    """What the cluster takes of the machine now."""
    kinds = resources(served.processes())
    total = sum(kinds.values(), Resources())
    parts = {kind: asdict(part) for kind, part in sorted(kinds.items())}
    return {**asdict(total), "shared_segments": shared_segments(), "of": parts}
