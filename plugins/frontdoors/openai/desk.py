"""Where request bodies are read: here while they are small, in other processes if not.

The event loop serves every stream, so nothing on it may take long.  Threads would not help: JSON
and templates hold the interpreter's lock.  Small bodies are read at once, which takes no more than
handing them over would.
"""

from __future__ import annotations

import msgspec
from attrs import define, field

from shuntserve_core.text import Budget, OutOfBudget, TextTokenizer
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.limits import Limits
from shuntserve_plugins.frontdoors.openai.pool import Busy, TooCostly, WorkerPool
from shuntserve_plugins.frontdoors.openai.prompts import Bounds
from shuntserve_plugins.frontdoors.openai.reading import Reading, read, unpack
from shuntserve_plugins.frontdoors.openai.worker import Answer, Job, Setup

SMALL = 4096
"""Bytes of a body up to which it is read on the event loop: 2 ms of tokenizing, 7 at worst."""
HERE = Budget(steps=2000, characters=4 * SMALL)
"""What a chat template may use up on the event loop; one that needs more is rendered elsewhere."""
_answer = msgspec.msgpack.Decoder(Answer)


@define(eq=False)
class Desk:
    """Reads request bodies for one site."""

    tokenizer: TextTokenizer
    model: str
    limits: Limits
    pool: WorkerPool = field(kw_only=True)

    @classmethod
    def make(
        cls, tokenizer: TextTokenizer, model: str, limits: Limits, model_dir: str, template: str
    ) -> Desk:
        """With a pool of processes, none of which is started before it is needed."""
        setup = Setup(model_dir, template, limits.text_seconds)
        pool = WorkerPool(
            "shuntserve_plugins.frontdoors.openai.worker",
            msgspec.msgpack.encode(setup),
            size=limits.text_workers,
            queue=limits.text_queue,
            seconds=limits.text_seconds,
        )
        return cls(tokenizer, model, limits, pool=pool)

    async def read(
        self, kind: str, raw: bytes, max_length: int, tenant: str, weight: float
    ) -> Reading:
        """What the event loop needs of a body.  Raises `ApiError`."""
        if len(raw) <= SMALL:
            bounds = Bounds(self.model, max_length, self.limits.choices, HERE, last=False)
            try:
                return read(kind, self.tokenizer, bounds, raw)
            except OutOfBudget:
                pass
        job = Job(kind, self.model, max_length, self.limits.choices, 2 * self.limits.body_bytes)
        try:
            answer = await self.pool.do(tenant, weight, [msgspec.msgpack.encode(job), raw])
        except Busy:
            raise ApiError(
                429, "Too many long requests are being read.", code="queue_full", retry_after=1
            ) from None
        except TooCostly:
            raise ApiError(
                400,
                f"Reading the request takes more than {self.limits.text_seconds:g} seconds.",
                code="too_costly",
            ) from None
        return self._reading(kind, _answer.decode(answer))

    @staticmethod
    def _reading(kind: str, answer: Answer) -> Reading:
        if answer.status:
            raise ApiError(answer.status, answer.message, param=answer.param, code=answer.code)
        return unpack(kind, answer.reading)
