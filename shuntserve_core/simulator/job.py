"""A request on its way through the simulator."""

from __future__ import annotations

BLOCK = 16
"""Tokens of one block of the KV cache."""


class Job:
    """Mutable, and small: there may be a million of them."""

    __slots__ = (
        "answer",
        "base",
        "computed",
        "done",
        "ends",
        "joined",
        "number",
        "prompt",
        "unread",
    )

    def __init__(self, number: int, prompt: int, answer: int) -> None:
        self.number = number
        """Its place in the workload."""
        self.prompt = prompt
        self.answer = answer
        self.done = 0
        """Answer tokens that it has, as of when it last stood in a queue."""
        self.computed = 0
        """Tokens of prompt and answer that are in the cache while it is prefilled."""
        self.base = 0
        """Answer tokens that it had when it began to decode."""
        self.joined = -1
        """The micro-batch's decode step at which it began to decode; -1 before that."""
        self.ends = -1
        """The decode step that makes its last token."""
        self.unread = 0
        """Tokens that its pipeline has yet to read before its first word: balancers count them."""

    @property
    def length(self) -> int:
        """Tokens to prefill: the prompt, and what of the answer is there already."""
        return self.prompt + self.done


def blocks_of(tokens: int) -> int:
    """Blocks that hold so many tokens and the next one."""
    return tokens // BLOCK + 1
