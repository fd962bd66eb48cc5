"""A request that is cut anywhere goes on as if it had not been, whatever it asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from attrs import evolve

from shuntserve_core.link import LinkClient
from shuntserve_core.types.request import EngineRequest, SamplingParams, StepOutput
from shuntserve_plugins.engines.vllm.engine import Vllm
from tests.plugins.engines.embedded.forked import TemplateForTests
from tests.plugins.engines.embedded.processes import Stores
from tests.plugins.engines.vllm.cutting import door
from tests.plugins.engines.vllm.models import StoredModel, launch_of
from tests.plugins.engines.vllm.serving import serving, together

pytestmark = [pytest.mark.timeout(400), pytest.mark.asyncio(loop_scope="module")]

TOKENS = 40
EOS = 1
PROMPT = (0, *(100 + i * 7 % 390 for i in range(21)))
LONG = tuple((5 * i + i * i) % 490 for i in range(150))
"""More than a step takes, so that it is computed in parts."""
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "n", "ok"],
    "additionalProperties": False,
}
WAYS: Mapping[str, dict[str, Any]] = {
    "greedy": {},
    "logprobs": {"logprobs": 3},
    "seeded": {"temperature": 0.8, "top_p": 0.95, "seed": 7},
    "seeded, everything possible": {"temperature": 1.5, "seed": 11, "logprobs": 1},
    "penalties": {"frequency_penalty": 1.0, "presence_penalty": 0.5},
    "repetition": {"repetition_penalty": 1.3, "temperature": 0.8, "seed": 3},
    "min_tokens": {"min_tokens": 38, "stop_token_ids": (EOS,), "logit_bias": {EOS: 100.0}},
    "schema": {"guided": {"json_schema": SCHEMA}, "stop_token_ids": (EOS,)},
    "seeded schema": {
        "guided": {"json_schema": SCHEMA},
        "stop_token_ids": (EOS,),
        "temperature": 1.0,
        "seed": 5,
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def link(
    llama: StoredModel, template: TemplateForTests, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LinkClient]:
    with Stores(tmp_path_factory.mktemp("stores"), 1) as stores:
        launch = launch_of(llama, [(0, 8)], [1], stores)
        async with serving(launch, template, Vllm(max_batched_tokens=64)) as (_, link):
            yield link


def _cut(whole: StepOutput, at: int) -> StepOutput:
    return evolve(whole, tokens=whole.tokens[at:], logprobs=whole.logprobs[at:])


def _same(one: StepOutput, other: StepOutput) -> bool:
    """Tokens and reasons are equal, and logprobs as close as another batch allows."""
    same = (one.tokens, one.finish, len(one.logprobs)) == (
        other.tokens,
        other.finish,
        len(other.logprobs),
    )
    return same and all(
        abs(a.logprob - b.logprob) < 1e-4 and [t for t, _ in a.top] == [t for t, _ in b.top]
        for a, b in zip(one.logprobs, other.logprobs, strict=True)
    )


@pytest.mark.parametrize("way", WAYS)
async def test_every_cut_is_as_no_cut(link: LinkClient, way: str) -> None:
    sampling = SamplingParams(**{"max_tokens": TOKENS, "temperature": 0.0, **WAYS[way]})
    request = EngineRequest("whole", PROMPT, sampling)
    (whole,) = await together(link, [request])
    assert len(whole.tokens) > 10, whole
    cuts = range(1, len(whole.tokens))
    rests = [evolve(request, id=f"cut {at}", output=whole.tokens[:at]) for at in cuts]
    outputs = await together(link, rests)
    wrong = [at for at, o in zip(cuts, outputs, strict=True) if not _same(o, _cut(whole, at))]
    assert not wrong


async def test_a_long_prompt_computed_in_parts_is_resumed_too(link: LinkClient) -> None:
    """And its sampled parts, which are in vain, take no draws."""
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0.9, seed=2)
    request = EngineRequest("whole", LONG, sampling)
    (whole,) = await together(link, [request])
    cuts = (1, 20, 39)
    rests = [evolve(request, id=f"cut {at}", output=whole.tokens[:at]) for at in cuts]
    for at, output in zip(cuts, await together(link, rests), strict=True):
        assert output.tokens == whole.tokens[at:]


async def test_what_was_complete_is_finished_at_once(link: LinkClient) -> None:
    sampling = SamplingParams(max_tokens=3, temperature=0.0, stop_token_ids=(EOS,))
    request = EngineRequest("complete", PROMPT, sampling, output=(5, 6, 7))
    stopped = evolve(request, id="stopped", output=(5, EOS))
    outputs = await together(link, [request, stopped])
    assert [(o.tokens, o.finish) for o in outputs] == [((), "length"), ((), "stop")]


async def test_tokens_against_the_constraint_fail_this_request_alone(link: LinkClient) -> None:
    sampling = SamplingParams(max_tokens=9, temperature=0.0, guided={"json_schema": SCHEMA})
    wrong = EngineRequest("wrong", PROMPT, sampling, output=(50, 60))
    right = EngineRequest("right", PROMPT, SamplingParams(max_tokens=9, temperature=0.0))
    refused, served = await together(link, [wrong, right])
    assert refused.finish == "error"
    assert len(served.tokens) == 9


@pytest.mark.parametrize(
    "guided", [{"json_schema": {"type": "nonsense"}}, {"sonnet": True}, {"regex": "(("}]
)
async def test_a_constraint_that_is_none_is_refused(
    link: LinkClient, guided: dict[str, Any]
) -> None:
    sampling = SamplingParams(max_tokens=9, temperature=0.0, guided=guided)
    (refused,) = await together(link, [EngineRequest("wrong", PROMPT, sampling)])
    assert refused.finish == "error"
    assert refused.bad_request


async def test_a_character_is_whole_wherever_its_bytes_are_cut(
    link: LinkClient, llama: StoredModel, tmp_path: Path
) -> None:
    async with door(link, llama, tmp_path) as asked:
        whole = await asked.ask()
        sizes = [len(character.encode()) for character in whole.text]
        assert sizes.count(4) > 2
        assert whole.tokens == sum(sizes) + 1, "a token for each byte, and one that ends it"
        for cut in range(1, whole.tokens):
            again = await asked.ask(cut)
            assert again == whole
            assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in again.pieces)
        assert asked.dispatcher.counters.migrated == {"planned": whole.tokens - 1}


@pytest.mark.parametrize("included", [False, True])
async def test_a_stop_string_is_met_wherever_it_is_cut(
    link: LinkClient, llama: StoredModel, tmp_path: Path, *, included: bool
) -> None:
    """Also within a character of it, and nothing of it is sent too soon."""
    async with door(link, llama, tmp_path) as asked:
        free = await asked.ask()
        stop = free.text[4:7]
        at = free.text.index(stop)
        extra = {"stop": [stop], "extra_body": {"include_stop_str_in_output": included}}
        whole = await asked.ask(**extra)
        assert whole.text == free.text[: at + len(stop) if included else at]
        assert whole.finish == "stop"
        assert whole.tokens == len(free.text[: at + len(stop)].encode())
        for cut in range(1, whole.tokens):
            again = await asked.ask(cut, **extra)
            assert again == whole
        assert asked.dispatcher.counters.migrated == {"planned": whole.tokens - 1}
