"""What a workload's lengths come down to: a few means over requests."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from shuntserve_core.types import Workload


@frozen
class Lengths:
    """Means over requests of s prompt tokens and o answer tokens.

    Means of products are taken over the sample, not from the means: a long prompt with a long
    answer holds its KV cache for longer than two averages say.
    """

    prompt: float
    """Prompt tokens."""
    decode_steps: float
    """Steps after the one that ends the prompt and yields the first token: o − 1."""
    chunks: float
    """Steps that a prompt needs when it is alone: ⌈s / chunk⌉."""
    prompt_pairs: float
    """(query, key) pairs of causal attention over the prompt: s(s + 1) / 2."""
    chunk_context: float
    """Cached tokens that the chunks of a prompt read, all chunks together."""
    decode_context: float
    """Cached tokens that the decode steps read, all steps together: Σ (s + k), k = 1 … o − 1."""
    occupancy: float
    """Tokens that a request in flight holds, averaged over the steps that it stays."""

    @classmethod
    def of(cls, workload: Workload, chunk_tokens: int) -> Lengths:
        """Means over `workload.lengths`, or of one request of mean lengths where it is empty."""
        sample = workload.lengths or ((workload.input_tokens, workload.output_tokens),)
        s, o = np.asarray(sample, dtype=np.float64).T
        steps = np.maximum(o - 1, 0)
        chunks = np.ceil(s / chunk_tokens)
        context = steps * s + steps * (steps + 1) / 2
        # Chunks end at chunk, 2 chunk, … and at s: each reads all that is before its end.
        chunk_context = chunk_tokens * chunks * (chunks - 1) / 2 + s
        return cls(
            prompt=float(s.mean()),
            decode_steps=float(steps.mean()),
            chunks=float(chunks.mean()),
            prompt_pairs=float((s * (s + 1) / 2).mean()),
            chunk_context=float(chunk_context.mean()),
            decode_context=float(context.mean()),
            # By renewal: held token-steps of a request over steps of a request.
            occupancy=float((context + chunk_context).mean() / (steps + chunks).mean()),
        )
