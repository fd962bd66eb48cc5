from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.sampling.noise import Noise
from shuntserve_core.types.request import SamplingParams
from shuntserve_plugins.engines.embedded.sampling import History, choose, logprob_of


def pick(
    logits: list[float],
    *,
    prompt: tuple[int, ...] = (),
    output: tuple[int, ...] = (),
    **sampling: Any,
) -> int:
    params = SamplingParams(**{"max_tokens": 10, "temperature": 0.0, **sampling})
    history = History(params, frozenset(prompt), Counter(output), len(output))
    (token,) = choose(torch.tensor([logits]), [history], Noise(len(logits)))
    return token


def drawn(logits: list[float], count: int, **sampling: Any) -> Counter[int]:
    """How often each token is drawn, over seeds, in one batch."""
    histories = [
        History(
            SamplingParams(**{"max_tokens": 10, "seed": seed, **sampling}),
            frozenset(),
            Counter(),
            0,
        )
        for seed in range(count)
    ]
    rows = torch.tensor(logits).expand(count, -1)
    return Counter(choose(rows, histories, Noise(len(logits))))


def shares(logits: list[float], draws: int = 4000, **sampling: Any) -> list[float]:
    """The share of each token among draws over seeds."""
    counts = drawn(logits, draws, temperature=1.0, **sampling)
    return [counts[token] / draws for token in range(len(logits))]


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_greedy_takes_the_most_probable_and_the_first_of_equals() -> None:
    assert pick([0.0, 2.0, 1.0]) == 1
    assert pick([0.0, 2.0, 2.0]) == 1


def test_bias_is_added() -> None:
    assert pick([0.0, 2.0, 1.0], logit_bias={2: 1.5}) == 2
    assert pick([0.0, 2.0, 1.0], logit_bias={1: -100.0}) == 2


def test_stop_tokens_wait_for_min_tokens() -> None:
    stop = {"stop_token_ids": (1,), "min_tokens": 2}
    assert pick([0.0, 2.0, 1.0], **stop) == 2
    assert pick([0.0, 2.0, 1.0], output=(0,), **stop) == 2
    assert pick([0.0, 2.0, 1.0], output=(0, 0), **stop) == 1


def test_presence_and_frequency_count_output_tokens_alone() -> None:
    assert pick([0.0, 2.0, 1.0], prompt=(1, 1, 1), presence_penalty=1.5) == 1
    assert pick([0.0, 2.0, 1.0], output=(1,), presence_penalty=1.5) == 2
    assert pick([0.0, 2.0, 1.0], output=(1,), frequency_penalty=0.6) == 1
    assert pick([0.0, 2.0, 1.0], output=(1, 1), frequency_penalty=0.6) == 2


def test_repetition_counts_the_prompt_too_and_knows_signs() -> None:
    assert pick([0.0, 2.0, 1.5], prompt=(1,), repetition_penalty=1.5) == 2
    assert pick([-3.0, -1.0, -1.4], output=(1,), repetition_penalty=1.5) == 2


def test_shares_are_the_softmax_at_the_temperature() -> None:
    expected = [0.1, 0.2, 0.7]
    for got, want in zip(shares(logs(*expected)), expected, strict=True):
        assert abs(got - want) < 0.03
    hot = torch.tensor(logs(*expected)).div(2).softmax(-1).tolist()
    counts = drawn(logs(*expected), 4000, temperature=2.0)
    for token, want in enumerate(hot):
        assert abs(counts[token] / 4000 - want) < 0.03


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({"top_k": 2}, {2, 3}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.4}, {3}),
        ({"top_p": 0.65}, {2, 3}),
        ({"top_p": 1e-9}, {3}),
        ({"min_p": 0.5}, {2, 3}),
        ({"min_p": 0.3}, {1, 2, 3}),
        # top_p counts what top_k leaves, made to add up to 1 again.
        ({"top_k": 2, "top_p": 0.55}, {3}),
    ],
)
def test_what_may_be_drawn(sampling: dict[str, float], kept: set[int]) -> None:
    counts = drawn(logs(0.1, 0.15, 0.3, 0.45), 300, **sampling)
    assert counts.keys() == kept


def test_equal_probabilities_are_cut_in_the_order_of_tokens() -> None:
    assert drawn([1.0, 1.0, 1.0], 200, top_k=2).keys() == {0, 1}


def test_a_token_depends_on_its_row_alone() -> None:
    """Whatever is sampled beside it, and however."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 70_000, generator=generator)
    ways: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"top_k": 50, "presence_penalty": 1.0},
        {},
    ]
    histories = [
        History(
            SamplingParams(max_tokens=90, seed=i // 3, **ways[i % 4]),
            frozenset([1]),
            Counter({i: 2, 5: 1}),
            i % 7,
        )
        for i in range(40)
    ]
    noise = Noise(70_000)
    together = choose(logits, histories, noise)
    alone = [
        choose(row[None], [history], noise)[0]
        for row, history in zip(logits, histories, strict=True)
    ]
    assert together == alone
    assert len(set(together)) > 30


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20),
    st.floats(0.01, 5),
    st.floats(0.01, 1),
    st.integers(0, 25),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_an_impossible_token_is_never_drawn(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float, seed: int
) -> None:
    banned = seed % len(logits)
    logits = [*logits, 0.0]
    token = pick(
        logits,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        stop_token_ids=(banned,),
        min_tokens=1,
    )
    assert 0 <= token < len(logits)
    assert token != banned


def test_logprobs_are_of_the_model_and_sorted() -> None:
    entry = logprob_of(torch.tensor(logs(0.1, 0.2, 0.7)), 1, 2)
    assert entry.logprob == pytest.approx(math.log(0.2), abs=1e-6)
    assert [token for token, _ in entry.top] == [2, 1]
    assert logprob_of(torch.tensor([0.0, 1.0]), 0, 0).top == ()
