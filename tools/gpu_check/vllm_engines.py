"""Engines of vLLM on one card, started as a node agent starts them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import define, evolve, field

from gpu_check.model import Model
from gpu_check.rows import CheckFailed, Skip
from shuntserve_core.interfaces.engine import EngineLaunch, RankLaunch
from shuntserve_core.link import LinkClient, LinkPolicy
from shuntserve_core.node.agent import Agent
from shuntserve_core.types import ModelSpec
from shuntserve_core.types.request import EngineRequest, SamplingParams, StepOutput
from shuntserve_plugins.engines.vllm.engine import Vllm

HOST = "127.0.0.1"
READY_SECONDS = 120.0
ENVIRONMENT = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
PATIENT = LinkPolicy(missed=100)


def need_vllm() -> None:
    """Raise `Skip` unless vLLM can be imported."""
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise Skip(f"vLLM is not there: {error}") from None


class Node:
    """One node agent with one card, in this process, and the engines that it runs."""

    def __init__(self, model: Model, scratch: Path, device: str, *, kv_bytes: int) -> None:
        self.agent = Agent("node", 1, scratch, device=device.partition(":")[0])
        self._model, self._kv_bytes = model, kv_bytes
        self._events = self.agent.subscribe()
        self._token = secrets.token_urlsafe(16)

    def launch(self, engine_id: str, *, max_batch: int, dtype: str) -> EngineLaunch:
        """The whole model on the card."""
        size = self._model.size
        spec = ModelSpec(
            name=self._model.name,
            layers=size.layers,
            hidden=size.hidden,
            heads=size.heads,
            kv_heads=size.kv_heads,
            head_dim=size.head_dim,
            intermediate=size.intermediate,
            vocab=size.vocab,
            max_positions=size.max_positions,
            dtype=dtype,
            weight_dtype=dtype,
            kv_dtype=dtype,
        )
        return EngineLaunch(
            engine_id=engine_id,
            model=spec,
            model_dir=str(self._model.directory),
            weights=str(self._model.weights),
            weights_model=self._model.name,
            layers=((0, size.layers),),
            tensor_parallel=(1,),
            ranks=(RankLaunch("node", HOST, 0, 0, 0, self.agent.store_socket(0)),),
            rendezvous=f"{HOST}:{self.agent.free_port(HOST)}",
            link_token=self._token,
            max_batch=max_batch,
            max_length=1024,
            kv_bytes=self._kv_bytes,
        )

    async def start(self, launch: EngineLaunch, options: Vllm) -> RunningEngine:
        """Start an engine and wait until it stands by.  Raises `CheckFailed`."""
        began = time.monotonic()
        await self.agent.load_shard(0, launch.shard(0))
        await self.agent.start_engine(launch.engine_id, options.workers(launch), {})
        address, ready = "", False
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not (address and ready):
                    event = await self._events.get()
                    if event.get("engine_id") != launch.engine_id:
                        continue
                    if event["event"] == "exit":
                        raise CheckFailed(self._ended(launch, event["code"]))
                    address = str(event.get("address", address))
                    ready = ready or event["event"] == "ready"
        except TimeoutError:
            raise CheckFailed(f"no engine after {READY_SECONDS:.0f} s") from None
        link = await LinkClient.connect(address, self._token, PATIENT)
        pid = next(
            engine["pids"][0]
            for engine in (await self.agent.describe())["engines"]
            if engine["engine_id"] == launch.engine_id
        )
        return RunningEngine(link, int(pid), time.monotonic() - began)

    def _ended(self, launch: EngineLaunch, code: int) -> str:
        log = self.agent.run_dir / f"engine-{launch.engine_id}.log"
        said = log.read_text(errors="replace").splitlines() if log.exists() else []
        print("\n".join(said[-200:]))
        return f"the engine ended with status {code}: {said[-1] if said else ''}"[:400]


@define
class RunningEngine:
    """An engine that stands by, or serves."""

    link: LinkClient
    pid: int
    start_seconds: float


@define
class Streams:
    """Requests on their way, and what came."""

    link: LinkClient
    tokens: dict[str, list[int]] = field(factory=dict)
    first_at: dict[str, float] = field(factory=dict)
    """When the first token came (from this engine), `time.monotonic`."""
    ended: dict[str, asyncio.Future[StepOutput]] = field(factory=dict)

    def submit(self, requests: Sequence[EngineRequest]) -> None:
        """Send them all."""
        for request in requests:
            self.tokens[request.id] = list(request.output)
            self.ended[request.id] = asyncio.get_running_loop().create_future()
            self.link.submit(request, self._hear(request.id))

    def _hear(self, name: str) -> Any:
        def hear(step: StepOutput) -> None:
            if step.tokens:
                self.first_at.setdefault(name, time.monotonic())
            self.tokens[name].extend(step.tokens)
            if step.finish is not None and not self.ended[name].done():
                self.ended[name].set_result(step)

        return hear

    async def all(self, seconds: float) -> dict[str, list[int]]:
        """Whole outputs.  Raises `CheckFailed`."""
        try:
            async with asyncio.timeout(seconds):
                for name, future in self.ended.items():
                    step = await future
                    if step.finish == "error":
                        raise CheckFailed(f"{name}: {step.error}")
        except TimeoutError:
            raise CheckFailed(f"streams not at their end after {seconds:.0f} s") from None
        return self.tokens

    async def have(self, count: int, seconds: float) -> None:
        """Wait until every stream has so many tokens.  Raises `CheckFailed`."""
        end = time.monotonic() + seconds
        while any(len(tokens) < count for tokens in self.tokens.values()):
            if time.monotonic() > end:
                raise CheckFailed(f"streams have no {count} tokens after {seconds:.0f} s")
            await asyncio.sleep(0.005)


def requests(count: int, prompt: int, output: int, vocab: int) -> list[EngineRequest]:
    """Greedy, sampled, and with penalties; each with a prompt of its own."""
    ways: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_p": 0.95},
        {"temperature": 0.8, "presence_penalty": 0.6, "frequency_penalty": 0.4},
    ]
    made = []
    for number in range(count):
        tokens = tuple((7 * number + 3 * at + at * at) % (vocab - 8) + 4 for at in range(prompt))
        sampling = SamplingParams(
            max_tokens=output, min_tokens=output, seed=number, **ways[number % len(ways)]
        )
        made.append(EngineRequest(f"stream {number}", tokens, sampling))
    return made


def resumed(asked: Sequence[EngineRequest], had: dict[str, list[int]]) -> list[EngineRequest]:
    """The same requests as the next engine gets them."""
    return [evolve(request, output=tuple(had[request.id])) for request in asked]
