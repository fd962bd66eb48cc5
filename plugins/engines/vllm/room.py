"""What a rank needs of its GPU beside weights and KV memory, which are the tensor store's."""

from __future__ import annotations

from attrs import frozen

from shuntserve_core.errors import UserError

_GIB = 1 << 30
_REMEDY = (
    "end what else uses the GPU, give less KV memory or smaller steps (max_batched_tokens), or "
    "plan with a larger estimator.workspace_bytes"
)


def utilization(needed: int, total: int) -> float:
    """vLLM's `gpu_memory_utilization` for an engine that owns neither weights nor KV memory.

    vLLM does not start where less than this share of the card is free.  Its default of 0.92 is for
    an engine that is alone and owns everything on the card.
    """
    return min(max(needed, 1) / total, 1.0)


@frozen
class Room:
    """A GPU, in bytes."""

    where: str
    """Which one, for people."""
    planned: int
    """What the plan leaves for one engine while it computes; 0 where nobody said."""

    def refuse_start(self, free: int) -> UserError:
        """Why an engine does not even begin."""
        return UserError(
            f"{_gib(free)} are free, and an engine takes {_gib(self.planned)} while it computes, "
            "beside weights and KV memory",
            where=self.where,
            remedy=_REMEDY,
        )

    def refuse_step(self, reason: str) -> UserError:
        """Why its largest step cannot be computed."""
        return UserError(
            f"the largest step does not fit beside weights and KV memory: {reason}",
            where=self.where,
            remedy=_REMEDY,
        )

    def judge(self, measured: int, free: int, kv_to_come: int) -> str:
        """A warning if the largest step took more than planned; empty if it did not.

        `free` is what is left with that step's memory kept, and `kv_to_come` what the tensor store
        has yet to take for KV memory.  Raises `UserError` where that is more.
        """
        if kv_to_come > free:
            raise UserError(
                f"{_gib(kv_to_come)} of KV memory do not fit into the {_gib(free)} that are free "
                f"beside weights and the {_gib(measured)} of the largest step",
                where=self.where,
                remedy=_REMEDY,
            )
        if not self.planned or measured <= self.planned:
            return ""
        return (
            f"{self.where}: the largest step took {_gib(measured)}, and the plan leaves "
            f"{_gib(self.planned)}: a successor may not fit beside this engine"
        )


def _gib(nbytes: int) -> str:
    return f"{nbytes / _GIB:.2f} GiB"
