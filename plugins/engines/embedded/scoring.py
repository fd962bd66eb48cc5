"""How probable the tokens of a prompt are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shuntserve_core.types.request import TokenLogprob


def scores_of(logits: Tensor, tokens: Sequence[int], alternatives: int) -> tuple[TokenLogprob, ...]:
    """The logprob and the rank of each token by its row of logits (tokens, vocabulary), and the
    best `alternatives` tokens with theirs."""
    logprobs = logits.double().log_softmax(-1)
    own = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])
    ranks = (logprobs > own).sum(-1) + 1
    values, best = logprobs.topk(min(alternatives, logprobs.shape[1]), dim=-1)
    return tuple(
        TokenLogprob(logprob, zip(ids, tops, strict=True), rank)
        for logprob, ids, tops, rank in zip(
            own[:, 0].tolist(), best.tolist(), values.tolist(), ranks.tolist(), strict=True
        )
    )
