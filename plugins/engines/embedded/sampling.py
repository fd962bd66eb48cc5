"""From logits to the next token, with the meanings that vLLM and OpenAI give the parameters.

A row of logits passes: bias, `min_tokens`, penalties, temperature, `min_p`, `top_k`, `top_p`; what
is left is drawn from with the noise of all engines.
Reported logprobs are of the model's own logits, before any of it, as in vLLM.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from attrs import define, field
from torch import Tensor

from shuntserve_core.sampling.noise import Noise
from shuntserve_core.types.request import SamplingParams, TokenLogprob
from shuntserve_plugins.engines.embedded.plan import Choice, Newcomer, Scores
from shuntserve_plugins.engines.embedded.scoring import scores_of


@define
class History:
    """What the choice of a sequence's next token depends on, beside the logits."""

    sampling: SamplingParams
    prompt: frozenset[int]
    counts: Counter[int]
    """Of the output's tokens."""
    generated: int
    """Tokens of the output so far."""

    def append(self, token: int) -> None:
        """A token was generated."""
        self.counts[token] += 1
        self.generated += 1


@define
class Sampler:
    """Chooses tokens for the sequences that it was told of."""

    noise: Noise
    _sequences: dict[int, History] = field(init=False, factory=dict)

    def add(self, new: Newcomer) -> None:
        """Begin with a sequence, wherever its output stands."""
        state = History(new.sampling, frozenset(new.prompt), Counter(new.output), len(new.output))
        self._sequences[new.number] = state

    def drop(self, number: int) -> None:
        """Forget a sequence."""
        self._sequences.pop(number, None)

    def choose(self, numbers: Sequence[int], logits: Tensor) -> list[Choice]:
        """The next token of sequences, from logits (sequences, vocabulary); they are generated."""
        histories = [self._sequences[number] for number in numbers]
        tokens = choose(logits, histories, self.noise)
        choices = []
        for number, history, token, row in zip(numbers, histories, tokens, logits, strict=True):
            history.append(token)
            wanted = history.sampling.logprobs
            logprob = None if wanted is None else logprob_of(row, token, wanted)
            choices.append(Choice(number, token, logprob))
        return choices

    def score(self, number: int, logits: Tensor, tokens: tuple[int, ...]) -> Scores:
        """Logprobs of the prompt's tokens behind rows of logits (tokens, vocabulary)."""
        alternatives = self._sequences[number].sampling.prompt_logprobs or 0
        return Scores(number, scores_of(logits, tokens, alternatives))


def choose(logits: Tensor, histories: Sequence[History], noise: Noise) -> list[int]:
    """The next token of each history, from float32 logits (histories, vocabulary).

    A row's token depends on that row alone, to the last bit.
    """
    rows = [_adjusted(row, history) for row, history in zip(logits, histories, strict=True)]
    drawn = [i for i, history in enumerate(histories) if history.sampling.temperature > 0]
    if not drawn:
        return _greedy(rows)
    temperatures = torch.tensor(
        [[histories[i].sampling.temperature] for i in drawn], dtype=logits.dtype
    ).to(logits.device)
    scaled = torch.stack([rows[i] for i in drawn]) / temperatures
    for row, i in zip(scaled, drawn, strict=True):
        _filter(row, histories[i].sampling)
    keys = noise.keys(
        [histories[i].sampling.seed for i in drawn], [histories[i].generated for i in drawn]
    )
    random = dict(zip(drawn, noise.choose(scaled, keys).tolist(), strict=True))
    greedy = iter(_greedy([row for i, row in enumerate(rows) if i not in random]))
    return [random[i] if i in random else next(greedy) for i in range(len(rows))]


def _greedy(rows: list[Tensor]) -> list[int]:
    tokens: list[int] = torch.stack([row.argmax() for row in rows]).tolist() if rows else []
    return tokens


def logprob_of(logits: Tensor, token: int, alternatives: int) -> TokenLogprob:
    """The token's logprob, and the best `alternatives` tokens with theirs."""
    logprobs = logits.double().log_softmax(-1)
    values, tokens = logprobs.topk(min(alternatives, logprobs.shape[0]))
    top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return TokenLogprob(float(logprobs[token]), top)


def _adjusted(logits: Tensor, history: History) -> Tensor:
    """A row after everything that can change which token is the most probable."""
    sampling, counts, device = history.sampling, history.counts, logits.device
    logits = logits.clone()
    if sampling.logit_bias:
        tokens = torch.tensor(list(sampling.logit_bias), device=device)
        bias = torch.tensor(list(sampling.logit_bias.values()), dtype=logits.dtype, device=device)
        logits[tokens] += bias
    if history.generated < sampling.min_tokens and sampling.stop_token_ids:
        logits[torch.tensor(sampling.stop_token_ids, device=device)] = -math.inf
    if sampling.repetition_penalty != 1.0 and (seen := sorted(history.prompt | counts.keys())):
        tokens = torch.tensor(seen, device=device)
        old = logits[tokens]
        penalty = sampling.repetition_penalty
        logits[tokens] = torch.where(old > 0, old / penalty, old * penalty)
    if counts and (sampling.frequency_penalty or sampling.presence_penalty):
        tokens = torch.tensor(list(counts), device=device)
        logits[tokens] -= torch.tensor(
            [n * sampling.frequency_penalty + sampling.presence_penalty for n in counts.values()],
            dtype=logits.dtype,
            device=device,
        )
    return logits


def _filter(logits: Tensor, sampling: SamplingParams) -> None:
    """Put minus infinity on the tokens of a row that may not be drawn."""
    limit = sampling.top_k if sampling.top_k > 0 else logits.shape[0]
    if sampling.min_p > 0:
        logits[logits < logits.max() + math.log(sampling.min_p)] = -math.inf
    if limit >= logits.shape[0] and sampling.top_p >= 1:
        return
    kept = logits.cpu()  # sums are made on the CPU, so that they do not depend on the device
    ordered, tokens = kept.sort(descending=True, stable=True)
    ordered[limit:] = -math.inf
    probabilities = ordered.double().softmax(-1)
    # A token stays while those before it have not reached top_p, so the first always does.
    before = probabilities.cumsum(-1) - probabilities
    ordered[1:][before[1:] >= sampling.top_p] = -math.inf
    logits.copy_(kept.scatter_(0, tokens, ordered))
