"""One rank carrying out steps."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from shuntserve_core.sampling.noise import Noise
from shuntserve_plugins.engines.embedded.arithmetic import padded
from shuntserve_plugins.engines.embedded.attention import Attention, KvCache, Span
from shuntserve_plugins.engines.embedded.plan import BLOCK, Choice, Part, Plan, Scores
from shuntserve_plugins.engines.embedded.sampling import Sampler
from shuntserve_plugins.engines.embedded.stage import Batch, Stage


class Neighbours(Protocol):
    """The stages before and after."""

    def receive(self, rows: int) -> Tensor:
        """Hidden states of the stage before: (rows, hidden)."""
        ...

    def send(self, hidden: Tensor) -> None:
        """Pass hidden states on to the stage after."""
        ...


class Rank:
    """A rank's weights, its KV cache once it owns one, and on the last stage a sampler."""

    def __init__(self, stage: Stage, neighbours: Neighbours, *, samples: bool) -> None:
        self.stage = stage
        self.cache: KvCache | None = None
        self._neighbours = neighbours
        self._sampler = Sampler(Noise(stage.geometry.vocab, stage.device)) if samples else None

    @torch.inference_mode()
    def step(self, plan: Plan) -> list[Choice | Scores]:
        """Carry out a step; the rank that samples returns scores of prompts and then the next
        tokens."""
        for new in plan.added:
            if self._sampler:
                self._sampler.add(new)
        results = self._compute(plan.parts) if plan.parts else []
        for number in plan.dropped:
            if self._sampler:
                self._sampler.drop(number)
        return results

    def _compute(self, parts: tuple[Part, ...]) -> list[Choice | Scores]:
        assert self.cache is not None
        batch = batch_of(parts, self.stage.device)
        if self.stage.first:
            hidden = self.stage.embed(batch)
        else:
            hidden = self._neighbours.receive(batch.rows)
        hidden = self.stage.forward(hidden, batch, self.cache)
        if not self.stage.last:
            self._neighbours.send(hidden)
            return []
        if not batch.sampled.shape[0]:
            return []
        logits = self.stage.logits(hidden, batch)
        if self._sampler is None:
            return []
        scored = sum(len(part.score) for part in parts)
        scores = self._scores(parts, logits[:scored])
        numbers = [part.number for part in parts if part.sample]
        return [*scores, *(self._sampler.choose(numbers, logits[scored:]) if numbers else ())]

    def _scores(self, parts: tuple[Part, ...], logits: Tensor) -> list[Scores]:
        assert self._sampler is not None
        scored = [part for part in parts if part.score]
        rows = torch.split(logits, [len(part.score) for part in scored])
        return [
            self._sampler.score(part.number, of_part, part.score)
            for part, of_part in zip(scored, rows, strict=True)
        ]

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compute something, on memory of our own: libraries set themselves up at first use."""
        cache = cache_of(self.stage, 1)
        batch = batch_of((Part(0, (0,), 0, (0,), True),), self.stage.device)
        hidden = torch.zeros(batch.rows, self.stage.geometry.hidden, device=self.stage.device)
        if self.stage.first:
            hidden = self.stage.embed(batch)
        hidden = self.stage.forward(hidden, batch, cache)
        if self.stage.last:
            self.stage.logits(hidden, batch)
        self.stage.scratch.release()  # while it stands by, beside another engine


def cache_of(stage: Stage, blocks: int, memory: Tensor | None = None) -> KvCache:
    """A KV cache of so many blocks, in `memory` (float32) or in memory of its own."""
    head_dim, heads, layers = stage.geometry.head_dim, stage.kv_heads, len(stage.layers)
    if memory is None:
        elements = layers * 2 * heads * blocks * BLOCK * head_dim
        memory = torch.zeros(elements, device=stage.device)
    return KvCache(layers, heads, head_dim, blocks, memory)


def batch_of(parts: tuple[Part, ...], device: torch.device) -> Batch:
    """The rows of a step: the parts one after another, padded to whole tiles."""
    spans: list[Span] = []
    tokens: list[int] = []
    positions: list[int] = []
    scored: list[int] = []
    sampled: list[int] = []
    for part in parts:
        scored.extend(range(len(tokens), len(tokens) + len(part.score)))
        spans.append(Span(len(tokens), part.start, len(part.tokens), part.blocks))
        tokens.extend(part.tokens)
        positions.extend(range(part.start, part.start + len(part.tokens)))
        if part.sample:
            sampled.append(len(tokens) - 1)
    positions += [0] * (padded(len(tokens)) - len(tokens))
    return Batch(
        torch.tensor(tokens, device=device),
        torch.tensor(positions, device=device),
        Attention(spans, device),
        torch.tensor([*scored, *sampled], dtype=torch.int64, device=device),
    )
