"""What each sampling parameter must do on an engine, or be refused: a part of `EngineContract`.

Effects are checked by what they are specified to do, with numbers where an engine tells logprobs.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import attrs
from attrs import frozen

from shuntserve_core.link.client import LinkClient
from shuntserve_core.types.features import NEEDS, Feature
from shuntserve_core.types.request import EngineRequest, SamplingParams, StepOutput, TokenLogprob

Ask = Callable[[EngineRequest], Awaitable[StepOutput]]

_NEAR = 1e-3
"""Logprobs that are as close as that may come in either order."""
_SEEDS = (1, 2, 3, 4)


@frozen
class Probe:
    """An engine to ask, in the middle of its contract."""

    link: LinkClient
    ask: Ask
    prompt: tuple[int, ...]
    decode: Callable[[Sequence[int]], str]
    end: int
    """The model's end token."""

    def has(self, feature: Feature) -> bool:
        """Whether the engine declares it."""
        return feature in self.link.info.features

    async def output(self, max_tokens: int = 12, **sampling: Any) -> StepOutput:
        """The answer to the prompt, greedy unless said otherwise."""
        params = SamplingParams(max_tokens, **{"temperature": 0.0, **sampling})
        answer = await self.ask(EngineRequest("probe", self.prompt, params))
        assert answer.finish != "error", answer.error
        return answer

    async def tokens(self, **sampling: Any) -> tuple[int, ...]:
        """The answer's tokens."""
        return (await self.output(**sampling)).tokens

    async def drawn(self, **sampling: Any) -> list[tuple[int, ...]]:
        """Answers at a high temperature, by seeds."""
        hot = {"temperature": 2.0, **sampling}
        return [await self.tokens(**hot, seed=seed) for seed in _SEEDS]


async def _max_tokens(probe: Probe) -> None:
    for count in (1, 7):
        answer = await probe.output(max_tokens=count)
        assert (len(answer.tokens), answer.finish) == (count, "length")


async def _stop_token_ids(probe: Probe) -> None:
    free = await probe.tokens()
    answer = await probe.output(stop_token_ids=(free[4],))
    assert answer.tokens == free[: free.index(free[4]) + 1]
    assert answer.finish == "stop"


async def _min_tokens(probe: Probe) -> None:
    free = await probe.tokens()
    stop = free[2]
    answer = await probe.tokens(stop_token_ids=(stop,), min_tokens=8)
    assert stop not in answer[:8]
    assert len(answer) >= 8


async def _temperature(probe: Probe) -> None:
    greedy = await probe.tokens()
    assert [await probe.tokens(seed=seed) for seed in _SEEDS] == [greedy] * len(_SEEDS)
    assert any(answer != greedy for answer in await probe.drawn())


async def _seed(probe: Probe) -> None:
    answers = await probe.drawn()
    assert answers == await probe.drawn()
    assert len(set(answers)) > 1


async def _top_p(probe: Probe) -> None:
    greedy = await probe.tokens()
    assert await probe.drawn(top_p=1e-9) == [greedy] * len(_SEEDS)
    if probe.has(Feature.LOGPROBS):
        for seed in _SEEDS:
            answer = await probe.output(temperature=1.0, top_p=0.5, seed=seed, logprobs=20)
            for entry in answer.logprobs:
                better = sum(math.exp(lp) for _, lp in entry.top if lp > entry.logprob + _NEAR)
                assert better < 0.5 + _NEAR, entry


async def _top_k(probe: Probe) -> None:
    greedy = await probe.tokens()
    assert await probe.drawn(top_k=1) == [greedy] * len(_SEEDS)
    if probe.has(Feature.LOGPROBS):
        chosen = set()
        for seed in _SEEDS:
            answer = await probe.output(temperature=2.0, top_k=3, seed=seed, logprobs=3)
            for token, entry in zip(answer.tokens, answer.logprobs, strict=True):
                best = [token for token, _ in entry.top]
                assert token in best or entry.logprob > entry.top[-1][1] - _NEAR
                chosen.add(best.index(token) if token in best else 2)
        assert len(chosen) > 1


async def _min_p(probe: Probe) -> None:
    greedy = await probe.tokens()
    assert await probe.drawn(min_p=1.0) == [greedy] * len(_SEEDS)
    if probe.has(Feature.LOGPROBS):
        for seed in _SEEDS:
            answer = await probe.output(temperature=2.0, min_p=0.5, seed=seed, logprobs=1)
            for entry in answer.logprobs:
                assert (entry.logprob - entry.top[0][1]) / 2.0 >= math.log(0.5) - _NEAR, entry


async def _penalty(probe: Probe, name: str, of: Callable[[int], float]) -> None:
    """Greedy answers, step by step: which token must win, by the logprobs without penalties.

    `of` is how many penalties a token has that was generated so many times.
    """
    plain = await probe.tokens(max_tokens=32)
    changed = False
    for penalty in (2.0, -2.0):
        sampling: dict[str, Any] = {"max_tokens": 32, name: penalty}
        if probe.has(Feature.LOGPROBS):
            sampling["logprobs"] = 20
        answer = await probe.output(**sampling)
        changed |= answer.tokens != plain
        seen: Counter[int] = Counter()
        for token, entry in zip(answer.tokens, answer.logprobs, strict=False):
            rivals = {rival: lp - penalty * of(seen[rival]) for rival, lp in entry.top}
            own = entry.logprob - penalty * of(seen[token])
            assert own >= max(rivals.values()) - _NEAR, (name, penalty, token, rivals)
            seen[token] += 1
    assert changed, f"{name} of 2 and of -2 changed nothing"


async def _presence_penalty(probe: Probe) -> None:
    await _penalty(probe, "presence_penalty", lambda count: float(count > 0))


async def _frequency_penalty(probe: Probe) -> None:
    await _penalty(probe, "frequency_penalty", float)


async def _repetition_penalty(probe: Probe) -> None:
    answer = await probe.tokens(repetition_penalty=1e6)
    assert len(set(answer)) == len(answer), "so large a penalty lets nothing be repeated"
    assert not set(answer) & set(probe.prompt), "the prompt's tokens count as seen"


async def _logit_bias(probe: Probe) -> None:
    greedy = await probe.tokens()
    wanted = max(probe.prompt)
    assert await probe.tokens(logit_bias={wanted: 100.0}) == (wanted,) * 12
    banned = await probe.tokens(logit_bias=dict.fromkeys(set(greedy), -100.0))
    assert not set(banned) & set(greedy)


def _check_logprobs(tokens: Sequence[int], entries: Sequence[TokenLogprob], count: int) -> None:
    assert len(entries) == len(tokens)
    for token, entry in zip(tokens, entries, strict=True):
        told = [lp for _, lp in entry.top]
        assert len(told) == count
        assert told == sorted(told, reverse=True)
        assert all(lp <= 0 for lp in (*told, entry.logprob))
        assert dict(entry.top).get(token, entry.logprob) == entry.logprob


async def _logprobs(probe: Probe) -> None:
    plain = await probe.output()
    assert plain.logprobs == ()
    for count in (0, 3):
        answer = await probe.output(logprobs=count)
        assert answer.tokens == plain.tokens
        _check_logprobs(answer.tokens, answer.logprobs, count)


async def _prompt_logprobs(probe: Probe) -> None:
    plain = await probe.output()
    assert plain.prompt_logprobs == ()
    for count in (0, 3):
        answer = await probe.output(prompt_logprobs=count)
        assert answer.tokens == plain.tokens
        _check_logprobs(probe.prompt[1:], answer.prompt_logprobs, count)


async def _guided(probe: Probe) -> None:
    ends: dict[str, Any] = {"max_tokens": 40, "stop_token_ids": (probe.end,)}
    for guided, fits in (
        ({"choice": ["left", "right"]}, ("left", "right")),
        ({"regex": "(ab){3}"}, ("ababab",)),
        ({"json_schema": {"enum": ["yes", "no"]}}, ('"yes"', '"no"')),
    ):
        answer = await probe.output(guided=guided, **ends)
        tokens = [token for token in answer.tokens if token != probe.end]
        assert probe.decode(tokens) in fits, guided
        assert answer.finish == "stop"


async def _output(probe: Probe) -> None:
    whole = await probe.tokens()
    params = SamplingParams(12, temperature=0.0)
    rest = await probe.ask(EngineRequest("rest", probe.prompt, params, whole[:5]))
    assert rest.tokens == whole[5:]


async def _cache_salt(probe: Probe) -> None:
    """Salts change no answer, and what one has cached serves no other."""
    room = min(probe.link.info.max_length - 16, 120)
    prompt = (probe.prompt * room)[:room]
    answers, hits = [], []
    await probe.output(max_tokens=2)
    while not probe.link.load.tokens:  # noqa: ASYNC110 - it comes by heartbeat
        await asyncio.sleep(0.01)
    for number, salt in enumerate(("one", "two", "one")):
        before = probe.link.load
        request = EngineRequest(f"salt {number}", prompt, SamplingParams(4, temperature=0.0))
        answers.append(await probe.ask(attrs.evolve(request, cache_salt=salt)))
        while probe.link.load.tokens < before.tokens + 4:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)
        hits.append(probe.link.load.prefix_hits - before.prefix_hits)
    assert answers == [answers[0]] * 3
    assert hits[:2] == [0, 0], "a prompt that another salt has cached was found"


EFFECTS: Mapping[str, Callable[[Probe], Awaitable[None]]] = {
    "max_tokens": _max_tokens,
    "min_tokens": _min_tokens,
    "temperature": _temperature,
    "top_p": _top_p,
    "top_k": _top_k,
    "min_p": _min_p,
    "seed": _seed,
    "presence_penalty": _presence_penalty,
    "frequency_penalty": _frequency_penalty,
    "repetition_penalty": _repetition_penalty,
    "logit_bias": _logit_bias,
    "stop_token_ids": _stop_token_ids,
    "logprobs": _logprobs,
    "prompt_logprobs": _prompt_logprobs,
    "guided": _guided,
    "output": _output,
    "cache_salt": _cache_salt,
}
"""By field of `SamplingParams`, and of `EngineRequest` for the last ones: what it does."""

EXAMPLES: Mapping[str, dict[str, Any]] = {
    "min_tokens": {"min_tokens": 3},
    "temperature": {"temperature": 1.0},
    "top_p": {"temperature": 1.0, "top_p": 0.5},
    "top_k": {"temperature": 1.0, "top_k": 5},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "seed": {"temperature": 1.0, "seed": 5},
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": -0.5},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "logit_bias": {"logit_bias": {1: 2.0}},
    "logprobs": {"logprobs": 0},
    "prompt_logprobs": {"prompt_logprobs": 0},
    "guided": {"guided": {"regex": "a"}},
}
"""By field that an engine may be unable to do: parameters that are not neutral."""

FIELDS = tuple(
    field.name
    for cls in (SamplingParams, EngineRequest)
    for field in attrs.fields(cls)
    if field.name not in ("id", "prompt", "sampling")
)
"""All that a request can ask of an engine, beside its prompt."""


async def check(probe: Probe, name: str) -> None:
    """Assert that a field has its effect, or is refused by the name of what is missing."""
    needed = Feature.RESUME if name == "output" else NEEDS.get(name)
    if needed is None or probe.has(needed):
        await EFFECTS[name](probe)
        return
    sampling = SamplingParams(**{"max_tokens": 4, "temperature": 0.0, **EXAMPLES.get(name, {})})
    output = probe.prompt[:1] if name == "output" else ()
    refused = await probe.ask(EngineRequest("refused", probe.prompt, sampling, output))
    assert (refused.finish, refused.bad_request, refused.tokens) == ("error", True, ())
    assert needed in refused.error or Feature.SAMPLING in refused.error
    assert (await probe.output(max_tokens=2)).finish == "length"
