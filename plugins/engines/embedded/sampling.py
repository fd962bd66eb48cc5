"""From logits to the next token, with the meanings that vLLM and OpenAI give the parameters.

A row of logits passes: bias, `min_tokens`, penalties, temperature, `min_p`, `top_k`, `top_p`.
Reported logprobs are of the model's own logits, before any of it, as in vLLM.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter

import torch
from attrs import define, field
from torch import Tensor

from shuntserve_core.types.request import SamplingParams, TokenLogprob
from shuntserve_plugins.engines.embedded.plan import Choice, Newcomer


@define
class _Sampled:
    """What the sampler must know of a sequence: its tokens so far."""

    sampling: SamplingParams
    prompt: frozenset[int]
    counts: Counter[int]
    generated: int

    def append(self, token: int) -> None:
        self.counts[token] += 1
        self.generated += 1


@define
class Sampler:
    """Chooses tokens for the sequences that it was told of."""

    _sequences: dict[int, _Sampled] = field(init=False, factory=dict)

    def add(self, new: Newcomer) -> None:
        """Begin with a sequence, wherever its output stands."""
        state = _Sampled(new.sampling, frozenset(new.prompt), Counter(new.output), len(new.output))
        self._sequences[new.number] = state

    def drop(self, number: int) -> None:
        """Forget a sequence."""
        self._sequences.pop(number, None)

    def choose(self, number: int, logits: Tensor) -> Choice:
        """The next token of a sequence, from its logits (vocabulary); it counts as generated."""
        state = self._sequences[number]
        token = choose(logits, state.sampling, state.prompt, state.counts, state.generated)
        state.append(token)
        wanted = state.sampling.logprobs
        return Choice(number, token, None if wanted is None else logprob_of(logits, token, wanted))


def choose(
    logits: Tensor,
    sampling: SamplingParams,
    prompt: frozenset[int],
    counts: Counter[int],
    generated: int,
) -> int:
    """The token that follows `generated` others, which `counts` counts."""
    logits = _adjusted(logits, sampling, prompt, counts, generated)
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = (logits.double() / sampling.temperature).softmax(-1)
    kept = _filtered(probabilities, sampling)
    cumulative = kept.cumsum(-1)
    point = uniform(sampling.seed, generated) * float(cumulative[-1])
    token = int(torch.searchsorted(cumulative, point, right=True))
    # Rounding can put the point at the very end, behind which there is no token.
    return min(token, int(kept.nonzero()[-1]))


def uniform(seed: int, index: int) -> float:
    """The random number in [0, 1) for token `index` of an output: a function of the two alone."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def logprob_of(logits: Tensor, token: int, alternatives: int) -> TokenLogprob:
    """The token's logprob, and the best `alternatives` tokens with theirs."""
    logprobs = logits.double().log_softmax(-1)
    values, tokens = logprobs.topk(min(alternatives, logprobs.shape[0]))
    top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return TokenLogprob(float(logprobs[token]), top)


def _adjusted(
    logits: Tensor,
    sampling: SamplingParams,
    prompt: frozenset[int],
    counts: Counter[int],
    generated: int,
) -> Tensor:
    """Everything that can change which token is the most probable."""
    logits = logits.clone()
    if sampling.logit_bias:
        tokens = torch.tensor(list(sampling.logit_bias))
        logits[tokens] += torch.tensor(list(sampling.logit_bias.values()), dtype=logits.dtype)
    if generated < sampling.min_tokens and sampling.stop_token_ids:
        logits[torch.tensor(sampling.stop_token_ids)] = -math.inf
    if sampling.repetition_penalty != 1.0 and (seen := sorted(prompt | counts.keys())):
        tokens = torch.tensor(seen)
        old = logits[tokens]
        penalty = sampling.repetition_penalty
        logits[tokens] = torch.where(old > 0, old / penalty, old * penalty)
    if counts and (sampling.frequency_penalty or sampling.presence_penalty):
        tokens = torch.tensor(list(counts))
        logits[tokens] -= torch.tensor(
            [n * sampling.frequency_penalty + sampling.presence_penalty for n in counts.values()],
            dtype=logits.dtype,
        )
    return logits


def _filtered(probabilities: Tensor, sampling: SamplingParams) -> Tensor:
    """Probabilities with zeros for tokens that may not be chosen; they need not add up to 1."""
    if sampling.min_p > 0:
        floor = sampling.min_p * probabilities.max()
        probabilities = torch.where(probabilities < floor, 0.0, probabilities)
    limit = sampling.top_k if sampling.top_k > 0 else probabilities.shape[0]
    if limit >= probabilities.shape[0] and sampling.top_p >= 1:
        return probabilities
    ordered, tokens = probabilities.sort(descending=True, stable=True)
    ordered[limit:] = 0.0
    ordered /= ordered.sum()
    # A token stays while those before it have not reached top_p, so the first always does.
    before = ordered.cumsum(-1) - ordered
    ordered[1:][before[1:] >= sampling.top_p] = 0.0
    return torch.zeros_like(probabilities).scatter_(0, tokens, ordered)
