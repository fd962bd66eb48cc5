"""What every engine must do, as tests to subclass; and a way to run one without a node agent.

    class TestMine(EngineContract):
        @contextmanager
        def engine(self):
            with running(MyEngine(), launch) as address:
                yield address, launch.link_token

Every test opens a link of its own to the one engine that the class shares.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from queue import Empty, Queue
from typing import IO, Any, ClassVar

import attrs
import pytest

from shuntserve_core.interfaces.engine import Engine, EngineLaunch, WorkerCommand
from shuntserve_core.interfaces.link import READY, LinkLost
from shuntserve_core.link.client import LinkClient
from shuntserve_core.link.connection import LinkPolicy
from shuntserve_core.testing.sampling import FIELDS, Probe, check
from shuntserve_core.types.features import EVERY_FEATURE
from shuntserve_core.types.request import EngineRequest, SamplingParams, StepOutput

# Tests share their machine with others; what is tested is that the engine answers, not how soon.
_PATIENT = LinkPolicy(missed=100)


@contextmanager
def running(engine: Engine, launch: EngineLaunch, timeout: float = 60.0) -> Iterator[str]:
    """The engine's processes, as an agent would start them; yields the link's address."""
    events: Queue[dict[str, Any]] = Queue()
    processes = [_start(command, events) for command in engine.workers(launch)]
    try:
        address, ready = "", 0
        while not address or ready < len(processes):
            event = events.get(timeout=timeout)
            address = event.get("address", address)
            ready += event["event"] == "ready"
        yield address
    except Empty:
        raise TimeoutError(f"the engine was not ready within {timeout} s") from None
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            _end(process)


def _start(command: WorkerCommand, events: Queue[dict[str, Any]]) -> subprocess.Popen[str]:
    environment = {**os.environ, **command.environment}
    process = subprocess.Popen(
        command.argv,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(command.stdin)
    process.stdin.flush()
    threading.Thread(target=_read_events, args=(process.stdout, events), daemon=True).start()
    return process


def _read_events(stream: IO[str], events: Queue[dict[str, Any]]) -> None:
    for line in stream:
        events.put(json.loads(line))


def _end(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


class EngineContract:
    """Subclass, and say how the engine is run."""

    prompt: ClassVar[tuple[int, ...]] = (5, 17, 42, 99, 3, 8)
    """Token ids that the model knows."""
    end: ClassVar[int] = 1
    """The model's end token, for engines with the feature `guided`."""
    address: ClassVar[tuple[str, str]]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; needed for engines with the feature `guided`."""
        raise NotImplementedError

    @abstractmethod
    def engine(self) -> AbstractContextManager[tuple[str, str]]:
        """A running engine that is at least in standby: address and token of its link."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _running(cls) -> Iterator[None]:
        with cls().engine() as address:
            cls.address = address
            yield

    def test_it_says_what_it_is(self) -> None:
        """Name, limits and features are there, and it gets ready."""

        async def scenario(link: LinkClient) -> None:
            assert link.info.engine_id
            assert link.info.max_batch >= 1
            assert link.info.max_length >= len(self.prompt) + 32
            assert link.info.features <= EVERY_FEATURE
            assert link.state == READY

        self._run(scenario)

    def test_a_request_has_its_tokens_and_one_finish(self) -> None:
        """`max_tokens` is exact, and greedy output is the same each time."""

        async def scenario(link: LinkClient) -> None:
            first = await generate(link, self._request("a", max_tokens=12))
            assert len(first.tokens) == 12
            assert first.finish == "length"
            assert await generate(link, self._request("b", max_tokens=12)) == first

        self._run(scenario)

    def test_requests_do_not_disturb_each_other(self) -> None:
        """A batch larger than the engine's limit gives what each gives alone."""

        async def scenario(link: LinkClient) -> None:
            count = min(link.info.max_batch + 2, 12)
            prompts = [self.prompt[i % 3 :] + self.prompt[: i % 5] for i in range(count)]
            requests = [
                attrs.evolve(self._request(f"r{i}", max_tokens=6), prompt=prompt)
                for i, prompt in enumerate(prompts)
            ]
            together = await asyncio.gather(*(generate(link, r) for r in requests))
            for request, output in zip(requests[:4], together, strict=False):
                assert await generate(link, request) == output

        self._run(scenario)

    @pytest.mark.parametrize("field", FIELDS)
    def test_each_parameter_has_its_effect_or_is_refused(self, field: str) -> None:
        """None is ignored; `shuntserve_core.testing.sampling` has what each is to do."""

        async def scenario(link: LinkClient) -> None:
            async def ask(request: EngineRequest) -> StepOutput:
                return await generate(link, request)

            probe = Probe(link, ask, self.prompt, self.decode, self.end)
            await check(probe, field)

        self._run(scenario)

    def test_a_prompt_is_scored_as_its_tokens_were_generated(self) -> None:
        """Each token but the first has its logprob, however the prompt is cut into steps."""

        async def scenario(link: LinkClient) -> None:
            if not {"logprobs", "prompt_logprobs"} <= link.info.features:
                return
            request = self._request("a", max_tokens=16, logprobs=2)
            generated = await generate(link, request)
            count = min(link.info.max_length - 8, 200)
            filler = (self.prompt * count)[: count - len(self.prompt) - 16]
            prompt = (*self.prompt, *generated.tokens, *filler)
            sampling = attrs.evolve(request.sampling, max_tokens=2, prompt_logprobs=2)
            scored = await generate(link, EngineRequest("b", prompt, sampling))
            assert len(scored.tokens) == len(scored.logprobs) == 2
            assert len(scored.prompt_logprobs) == len(prompt) - 1
            part = scored.prompt_logprobs[len(self.prompt) - 1 :][:16]
            for score, entry in zip(part, generated.logprobs, strict=True):
                assert score.rank == 1
                assert score.logprob == pytest.approx(entry.logprob, abs=1e-4)
                assert len(score.top) == 2
            for token, score in zip(prompt[1:], scored.prompt_logprobs, strict=True):
                best = [token for token, _ in score.top]
                assert (score.rank <= 2) == (token in best)
                assert score.logprob <= score.top[0][1]
            # Beside others, and with a prompt of which nothing can be scored.
            single = EngineRequest("c", self.prompt[:1], sampling)
            again = EngineRequest("d", prompt, sampling)
            outputs = await asyncio.gather(generate(link, single), generate(link, again))
            assert outputs[0].prompt_logprobs == ()
            assert [s.rank for s in outputs[1].prompt_logprobs] == [
                s.rank for s in scored.prompt_logprobs
            ]

        self._run(scenario)

    @pytest.mark.parametrize("temperature", [0.0, 0.9])
    def test_a_resumed_request_goes_on_where_it_was(self, temperature: float) -> None:
        """Token k depends on what came before and on (seed, k), not on who generates it."""

        async def scenario(link: LinkClient) -> None:
            features = {"resume", "sampling"} if temperature else {"resume"}
            if not features <= link.info.features:
                return
            request = self._request("whole", max_tokens=10, temperature=temperature, seed=11)
            whole = await generate(link, request)
            for cut in (1, 4, 9):
                rest = attrs.evolve(request, id=f"cut{cut}", output=whole.tokens[:cut])
                output = await generate(link, rest)
                assert output.tokens == whole.tokens[cut:]
                assert output.finish == whole.finish

        self._run(scenario)

    def test_an_aborted_request_makes_room_for_others(self) -> None:
        """It is heard no more, and the engine's load goes back to none."""

        async def scenario(link: LinkClient) -> None:
            heard: list[StepOutput] = []
            long = link.info.max_length - len(self.prompt)
            for i in range(link.info.max_batch):
                request = self._request(f"long{i}", max_tokens=long)
                link.submit(request, heard.append)
            await _until(lambda: bool(heard))
            for i in range(link.info.max_batch):
                link.abort(f"long{i}")
            count = len(heard)
            await generate(link, self._request("next", max_tokens=4))
            assert len(heard) == count
            await _until(lambda: link.load.running == link.load.waiting == 0)

        self._run(scenario)

    def test_a_prompt_that_is_too_long_is_the_clients_mistake(self) -> None:
        """It is refused as such, and costs nobody else anything."""

        async def scenario(link: LinkClient) -> None:
            prompt = self.prompt * (link.info.max_length // len(self.prompt) + 1)
            request = attrs.evolve(self._request("long", max_tokens=4), prompt=prompt)
            output = await generate(link, request)
            assert output.finish == "error"
            assert output.bad_request
            assert (await generate(link, self._request("next", max_tokens=4))).finish == "length"

        self._run(scenario)

    def test_a_wrong_token_is_refused(self) -> None:
        """Nobody without the secret opens a link."""

        async def scenario() -> None:
            with pytest.raises(LinkLost):
                await LinkClient.connect(self.address[0], "wrong" + self.address[1])

        asyncio.run(scenario())

    def test_a_client_that_vanishes_leaves_nothing_running(self) -> None:
        """And may come back to the same engine."""

        async def scenario(link: LinkClient) -> None:
            heard: list[StepOutput] = []
            long = link.info.max_length - len(self.prompt)
            link.submit(self._request("left", max_tokens=long), heard.append)
            await _until(lambda: bool(heard))
            link.cut("vanished")

        async def again(link: LinkClient) -> None:
            await _until(lambda: link.load.running == link.load.waiting == 0)

        self._run(scenario)
        self._run(again)

    def test_heartbeats_are_answered_while_it_computes(self) -> None:
        """The load arrives with them."""

        async def scenario(link: LinkClient) -> None:
            request = self._request("a", max_tokens=link.info.max_length - len(self.prompt))
            before = link.load.tokens
            link.submit(request, lambda _: None)
            await _until(lambda: link.load.tokens > before)
            assert link.lost is None

        self._run(scenario)

    def _request(self, name: str, **sampling: Any) -> EngineRequest:
        return EngineRequest(name, self.prompt, SamplingParams(**{"temperature": 0.0, **sampling}))

    def _run(self, scenario: Callable[[LinkClient], Coroutine[Any, Any, None]]) -> None:
        async def with_link() -> None:
            async with asyncio.timeout(100):
                link = await LinkClient.connect(*self.address, policy=_PATIENT)
                try:
                    await link.activate()
                    await scenario(link)
                finally:
                    link.close()

        asyncio.run(with_link())


async def generate(link: LinkClient, request: EngineRequest) -> StepOutput:
    """The whole output of a request, as if it had come in one step."""
    done = asyncio.get_running_loop().create_future()
    steps: list[StepOutput] = []

    def hear(output: StepOutput) -> None:
        steps.append(output)
        if output.finish is not None:
            done.set_result(None)

    link.submit(request, hear)
    await done
    return StepOutput(
        id="",
        tokens=tuple(token for step in steps for token in step.tokens),
        logprobs=tuple(entry for step in steps for entry in step.logprobs),
        finish=steps[-1].finish,
        error=steps[-1].error,
        bad_request=steps[-1].bad_request,
        prompt_logprobs=tuple(entry for step in steps for entry in step.prompt_logprobs),
    )


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what changes is in another process
        await asyncio.sleep(0.01)
