from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.types.request import EngineRequest, SamplingParams, TokenLogprob
from shuntserve_plugins.engines.embedded.plan import (
    BLOCK,
    Choice,
    Plan,
    Scores,
    pack_plan,
    pack_results,
    unpack_plan,
    unpack_results,
)
from shuntserve_plugins.engines.embedded.scheduler import Limits, Scheduler


def request(name: str, prompt: int, max_tokens: int) -> EngineRequest:
    sampling = SamplingParams(max_tokens=max_tokens, prompt_logprobs=0)
    return EngineRequest(name, tuple(range(prompt)), sampling)


class Ranks:
    """Remembers what ranks would have in KV memory, and checks every step against it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.content: dict[tuple[int, int], tuple[int, int]] = {}

    def check(self, plan: Plan) -> list[Choice | Scores]:
        owners = Counter(block for part in plan.parts for block in part.blocks)
        assert all(count == 1 for count in owners.values())
        assert len(plan.parts) <= self.limits.max_batch
        assert sum(len(p.tokens) for p in plan.parts if not p.start) <= self.limits.max_chunk
        choices: list[Choice | Scores] = []
        for part in plan.parts:
            # Tokens of prompts are their positions.
            assert part.score == tuple(range(part.start + 1, part.start + 1 + len(part.score)))
            if part.score:
                entries = [TokenLogprob(-float(token)) for token in part.score]
                choices.append(Scores(part.number, tuple(entries)))
            stop = part.start + len(part.tokens)
            assert len(part.blocks) * BLOCK >= stop
            for position in range(part.start, stop):
                slot = (part.blocks[position // BLOCK], position % BLOCK)
                self.content[slot] = (part.number, position)
            for position in range(stop):
                slot = (part.blocks[position // BLOCK], position % BLOCK)
                assert self.content[slot] == (part.number, position)
            if part.sample:
                choices.append(Choice(part.number, 7))
        return choices


actions = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 90), st.integers(1, 30)),
    st.tuples(st.just("abort"), st.integers(0, 20), st.just(0)),
    st.tuples(st.just("step"), st.integers(1, 5), st.just(0)),
)


@given(st.lists(actions, max_size=40), st.integers(8, 14), st.integers(1, 5), st.integers(1, 70))
@settings(max_examples=150, deadline=None)
def test_every_request_gets_its_tokens_and_no_block_is_shared(
    todo: list[tuple[str, int, int]], blocks: int, max_batch: int, max_chunk: int
) -> None:
    limits = Limits(blocks, max_batch, 120, max_chunk)
    scheduler, ranks = Scheduler(limits), Ranks(limits)
    wanted: dict[str, int] = {}
    submitted = 0
    got: Counter[str] = Counter()
    prompts: dict[str, int] = {}
    scored: dict[str, list[float]] = {}
    finished: set[str] = set()

    def step() -> None:
        plan = scheduler.plan()
        for output in scheduler.apply(plan, ranks.check(plan)):
            got[output.id] += len(output.tokens)
            scored.setdefault(output.id, []).extend(-e.logprob for e in output.prompt_logprobs)
            if output.tokens:  # all are told by then, each once, however often it was computed
                assert scored[output.id] == list(range(1, prompts[output.id]))
            assert output.id not in finished
            if output.finish:
                finished.add(output.id)

    for action, first, second in todo:
        if action == "submit":
            name = f"r{submitted}"
            submitted += 1
            prompts[name] = first
            wanted[name] = min(second, limits.max_length - first)
            scheduler.submit(request(name, first, second))
        elif action == "abort" and f"r{first}" not in finished:
            scheduler.abort(f"r{first}")
            wanted.pop(f"r{first}", None)
        else:
            for _ in range(first):
                step()
    for _ in range(5000):
        if not scheduler.busy:
            break
        step()
    assert not scheduler.busy
    assert {name: got[name] for name in wanted} == wanted
    assert scheduler.load.kv_used == 0
    assert scheduler.load.running == scheduler.load.waiting == 0


def test_decoding_goes_on_beside_a_long_prompt() -> None:
    scheduler = Scheduler(Limits(64, 4, 512, 16))
    scheduler.submit(request("short", 3, 20))
    plan = scheduler.plan()
    scheduler.apply(plan, [Choice(plan.parts[0].number, 7)])
    scheduler.submit(request("long", 100, 1))
    for _ in range(6):
        plan = scheduler.plan()
        assert [len(part.tokens) for part in plan.parts] == [1, 16]
        scheduler.apply(plan, [Choice(plan.parts[0].number, 7)])


def test_preemptions_are_counted() -> None:
    scheduler = Scheduler(Limits(4, 4, 64, 64))
    for name in ("old", "young"):
        scheduler.submit(request(name, 30, 20))
    while scheduler.busy:
        plan = scheduler.plan()
        scheduler.apply(plan, [Choice(part.number, 7) for part in plan.parts if part.sample])
    # Both begin with two blocks of the four, and grow beyond them.
    assert scheduler.load.preemptions == 1
    assert scheduler.load.tokens == 40


def test_plans_and_choices_travel_unchanged() -> None:
    scheduler = Scheduler(Limits(64, 4, 512, 16))
    scheduler.submit(
        EngineRequest("a", (1, 2), SamplingParams(max_tokens=3, logit_bias={4: 1.0}), (5,))
    )
    scheduler.submit(request("b", 2, 2))
    plan = scheduler.plan()
    assert unpack_plan(pack_plan(plan)) == plan
    logprob = TokenLogprob(-0.5, ((3, -0.25), (4, -0.5)), 2)
    choices = [Scores(1, (logprob, logprob)), Choice(1, 2), Choice(3, 4, logprob), Scores(2, ())]
    assert unpack_results(pack_results(choices)) == choices
