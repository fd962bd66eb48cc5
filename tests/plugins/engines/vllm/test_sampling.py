"""vLLM's sampler draws by seed and position, and as the embedded engine does."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from attrs import evolve

from shuntserve_core.sampling.noise import Noise
from shuntserve_core.types.request import SamplingParams
from shuntserve_plugins.engines.embedded.sampling import History, choose

pytest.importorskip("vllm")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM imports is not ours
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors, MoveDirectionality
    from vllm.v1.sample.logits_processor.builtin import MinPLogitsProcessor
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.sampler import Sampler

    from shuntserve_plugins.engines.vllm.sampling import SeededDraw, SeededRows
    from shuntserve_plugins.engines.vllm.translate import sampling_params


pytestmark = pytest.mark.timeout(400)

VOCAB = 5000
WAYS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 0.9, "top_k": 100, "top_p": 0.5},
    {"temperature": 1.1, "min_p": 0.05},
)


def config() -> Any:
    made = VllmConfig()
    made.scheduler_config.max_num_seqs = 256
    return made


def requests(count: int) -> list[tuple[SamplingParams, list[int]]]:
    """Parameters, and tokens of the output so far."""
    base = SamplingParams(max_tokens=100)
    return [(evolve(base, seed=i // 2, **WAYS[i % len(WAYS)]), [7] * (i % 5)) for i in range(count)]


def by_vllm(wanted: list[tuple[SamplingParams, list[int]]], logits: torch.Tensor) -> list[int]:
    """Through vLLM's sampler, as its model runner would call it."""
    rows = SeededRows(config(), torch.device("cpu"), False)
    min_p = MinPLogitsProcessor(config(), torch.device("cpu"), False)
    added = [
        (i, sampling_params(params, output), [1], output)
        for i, (params, output) in enumerate(wanted)
    ]
    for processor in (rows, min_p):
        processor.update_state(BatchUpdate(len(wanted), [], added, []))
    assert all(params.seed is None for _, params, _, _ in added), "vLLM makes no generators"
    sampler = Sampler()
    sampler.topk_topp_sampler = SeededDraw(rows)  # type: ignore[assignment]

    def column(name: str, off: float | None = None) -> torch.Tensor:
        values = [getattr(params, name) for params, _ in wanted]
        return torch.tensor([off if off is not None and value == 0 else value for value in values])

    zeros = torch.zeros(len(wanted))
    metadata = SamplingMetadata(
        temperature=column("temperature"),
        all_greedy=False,
        all_random=False,
        top_p=column("top_p"),
        top_k=column("top_k", VOCAB).int(),
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=zeros,
        presence_penalties=zeros,
        repetition_penalties=zeros,
        output_token_ids=[output for _, output in wanted],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors([min_p, rows]),
    )
    return sampler(logits.clone(), metadata).sampled_token_ids.flatten().tolist()


def by_embedded(wanted: list[tuple[SamplingParams, list[int]]], logits: torch.Tensor) -> list[int]:
    histories = [
        History(params, frozenset([1]), Counter(output), len(output)) for params, output in wanted
    ]
    return choose(logits, histories, Noise(VOCAB))


def test_equal_logits_and_seeds_make_equal_tokens_in_both_engines() -> None:
    wanted = requests(120)
    logits = torch.randn(120, VOCAB, generator=torch.Generator().manual_seed(1)) * 2
    tokens = by_vllm(wanted, logits)
    assert tokens == by_embedded(wanted, logits)
    assert len(set(tokens)) > 60


def test_rows_keep_their_seeds_wherever_vllm_moves_them() -> None:
    rows = SeededRows(config(), torch.device("cpu"), False)
    outputs: list[list[int]] = [[], [1], [1, 2], [1, 2, 3]]
    added = [
        (i, sampling_params(SamplingParams(max_tokens=9, seed=100 + i), ()), [1], output)
        for i, output in enumerate(outputs)
    ]
    rows.update_state(BatchUpdate(4, [], added, []))
    assert rows.state(4) == ([100, 101, 102, 103], [0, 1, 2, 3])
    outputs[1].append(5)
    rows.update_state(None)
    assert rows.state(4) == ([100, 101, 102, 103], [0, 2, 2, 3])
    rows.update_state(BatchUpdate(4, [], [], [(0, 3, MoveDirectionality.SWAP)]))
    assert rows.state(4) == ([103, 101, 102, 100], [3, 2, 2, 0])
    rows.update_state(BatchUpdate(3, [1], [], [(3, 1, MoveDirectionality.UNIDIRECTIONAL)]))
    assert rows.state(3) == ([103, 100, 102], [3, 0, 2])
    # A new request takes the place of one that was removed in the same step.
    again = (1, sampling_params(SamplingParams(max_tokens=9, seed=5), (8, 9)), [1], [8, 9])
    rows.update_state(BatchUpdate(3, [1], [again], []))
    assert rows.state(3) == ([103, 5, 102], [3, 2, 2])


def test_a_batch_that_is_none_of_ours_is_served_too() -> None:
    """vLLM warms its sampler up with rows of its own."""
    draw = SeededDraw(SeededRows(config(), torch.device("cpu"), False))
    tokens, behind = draw(torch.zeros(3, 700), {}, None, None)
    assert tokens.shape == (3,)
    assert behind is None
