"""Noise by seed and position in place of vLLM's own random draws.

vLLM is told of no seeds: it would make a generator of each, and draw row by row.  A logits
processor, which changes no logits, learns from vLLM whose row is which; where vLLM's sampler would
draw from what its filters left, the noise of all our engines does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from shuntserve_core.sampling.noise import Noise

if TYPE_CHECKING:
    from vllm.config import VllmConfig

SEED_KEY = "shuntserve_seed"
"""In `SamplingParams.extra_args`: the request's seed."""


class SeededRows(LogitsProcessor):
    """The seed and the output of each row of the batch, as vLLM moves rows about."""

    def __init__(self, vllm_config: VllmConfig, _device: torch.device, _pinned: bool) -> None:
        rows = vllm_config.scheduler_config.max_num_seqs
        self._seeds = [0] * rows
        self._outputs: list[list[int]] = [[] for _ in range(rows)]

    def is_argmax_invariant(self) -> bool:
        """No logits are changed."""
        return True

    def apply(self, logits: Tensor) -> Tensor:
        """The logits as they are."""
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Learn which rows are new, and which have moved; removed rows are overwritten in time."""
        if batch_update is None:
            return
        for row, params, _, output in batch_update.added:
            self._seeds[row] = _seed(params)
            self._outputs[row] = output  # vLLM's own list, which grows
        for a, b, direction in batch_update.moved:
            for of_rows in (self._seeds, self._outputs):
                self._move(of_rows, a, b, direction)

    def state(self, rows: int) -> tuple[list[int], list[int]]:
        """Seeds, and positions of the next tokens, of the first `rows` rows."""
        return self._seeds[:rows], [len(output) for output in self._outputs[:rows]]

    @staticmethod
    def _move(of_rows: list[Any], a: int, b: int, direction: MoveDirectionality) -> None:
        if direction == MoveDirectionality.SWAP:
            of_rows[a], of_rows[b] = of_rows[b], of_rows[a]
        else:
            of_rows[b] = of_rows[a]


class SeededDraw(nn.Module):
    """What stands in for vLLM's `TopKTopPSampler`: its filters, and our noise."""

    def __init__(self, rows: SeededRows) -> None:
        super().__init__()
        self._rows = rows
        self._noise: Noise | None = None

    def forward(
        self, logits: Tensor, _generators: dict[int, torch.Generator], k: Any, p: Any
    ) -> tuple[Tensor, None]:
        """A token of each row: (rows,), and no logits behind the filters."""
        if self._noise is None or self._noise.vocab != logits.shape[1]:
            self._noise = Noise(logits.shape[1], logits.device)
        filtered = apply_top_k_top_p(logits, k, p)
        keys = self._noise.keys(*self._rows.state(logits.shape[0]))
        return self._noise.choose(filtered, keys), None


def seed_sampler(model_runner: Any) -> None:
    """Make a model runner's sampler draw by seed and position."""
    processors = model_runner.input_batch.logitsprocs.all
    (rows,) = [one for one in processors if isinstance(one, SeededRows)]
    model_runner.sampler.topk_topp_sampler = SeededDraw(rows)


def _seed(params: SamplingParams) -> int:
    """0 for rows that are not ours: vLLM's own, when it warms up."""
    return int((params.extra_args or {}).get(SEED_KEY, 0))
