"""What is checked, in which order, and how long each part may take."""

from __future__ import annotations

from attrs import frozen

BUDGET_SECONDS = 470.0
"""For all parts together, whatever their own limits say."""


@frozen
class Part:
    """A module of `gpu_check.parts` that runs in a process of its own."""

    name: str
    letter: str
    title: str
    seconds: float
    """Its limit on a GPU."""
    host: bool = False
    """Whether it runs without a GPU too, on host memory."""
    host_seconds: float = 150.0


PARTS = (
    Part("lending", "a", "tensor store: lend, map, kill, return, grow", 55, host=True),
    Part("writers", "a", "tensor store: writers killed in mid-kernel", 60, host=True),
    Part("loading", "a", "tensor store: load speed", 30, host=True),
    Part("cluster", "b", "`embedded`: equality, switches, kills", 95, host=True),
    Part("sampler", "c", "sampling: cost of the noise", 30),
    Part("graphs", "c", "CUDA graphs on lent memory", 25),
    Part("layers", "d", "one layer beside the roofline", 60),
    Part("engines", "e", "vLLM: two engines in turn on one store, batch-invariant", 85),
    Part("throughput", "e", "vLLM: throughput beside stock", 75),
    Part("plain", "e", "vLLM: two engines in turn on one store, default mode", 60),
)


def chosen(letters: str) -> tuple[Part, ...]:
    """The parts that an option like `a,b` or `a,layers` asks for.  Raises ValueError."""
    wanted = [word.strip() for word in letters.split(",") if word.strip()]
    known = {word for part in PARTS for word in (part.letter, part.name)}
    unknown = [word for word in wanted if word not in known]
    if unknown:
        raise ValueError(f"no part {unknown[0]!r}; parts: {', '.join(sorted(known))}")
    return tuple(part for part in PARTS if part.letter in wanted or part.name in wanted)
