"""`[workload]`: the requests that are expected."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen
from attrs.validators import ge, le, optional

from shuntserve_core.config.fields import resolved
from shuntserve_core.config.mistakes import Mistakes
from shuntserve_core.errors import UserError
from shuntserve_core.types import Workload

_tokens = [ge(1), le(10_000_000)]


@frozen
class WorkloadTable:
    """The requests that are expected: mean lengths, or a trace of lengths."""

    input_tokens: int | None = field(default=None, validator=optional(_tokens))
    """Mean prompt length, tokens; by default the trace's mean."""
    output_tokens: int | None = field(default=None, validator=optional(_tokens))
    """Mean answer length, tokens; by default the trace's mean."""
    max_length: int = field(default=8192, validator=_tokens)
    """Longest prompt and answer together that an engine must accept, tokens."""
    trace: str | None = None
    """File of requests, relative to this file, in any form that `simulate --workload` reads; times
    may be left out."""
    trace_max_tokens: int | None = field(default=None, validator=optional(_tokens))
    """Leave out requests of the trace whose prompt or whose answer is longer than this; by
    default, those that are longer than `max_length` together."""


def resolve_workload(table: WorkloadTable, base: Path, mistakes: Mistakes) -> Workload | None:
    """Mean lengths and, with a trace, all lengths; notes mistakes and returns None for them."""
    lengths: tuple[tuple[int, int], ...] = ()
    if table.trace is not None:
        try:
            lengths = read_lengths(
                resolved(base, table.trace), table.trace_max_tokens, table.max_length
            )
        except UserError as error:
            mistakes.add("workload.trace", error.message, error.remedy)
            return None
    means = [round(sum(column) / len(lengths)) for column in zip(*lengths, strict=True)]
    inputs = table.input_tokens or (means[0] if means else None)
    outputs = table.output_tokens or (means[1] if means else None)
    if inputs is None or outputs is None:
        for key, value in (("input_tokens", inputs), ("output_tokens", outputs)):
            if value is None:
                mistakes.add(f"workload.{key}", "is missing", f"give {key}, or a trace of lengths")
        return None
    if inputs + outputs > table.max_length:
        mistakes.add(
            "workload.max_length",
            f"{table.max_length} is less than input_tokens + output_tokens = {inputs + outputs}",
            f"give at least {inputs + outputs}",
        )
        return None
    return Workload(max(inputs, 1), max(outputs, 1), table.max_length, lengths)


def read_lengths(file: Path, longest: int | None, max_length: int) -> tuple[tuple[int, int], ...]:
    """(prompt, answer) tokens of each request in a trace, in any form that `simulate` reads.

    Kept are requests with at most `longest` tokens on each side (None: no limit) and at most
    `max_length` together.  Raises `UserError`.
    """
    from shuntserve_core.traces.readers import read_requests  # numpy, for whoever has a trace

    longest = max_length if longest is None else longest
    try:
        rows = read_requests(file, timed=False).lengths
    except UserError as error:
        raise UserError(f"{error.where}: {error.message}", remedy=error.remedy) from error
    kept = tuple(
        (inputs, outputs)
        for inputs, outputs in rows
        if 0 < inputs <= longest and 0 < outputs <= longest and inputs + outputs <= max_length
    )
    if not kept:
        raise UserError(
            f"{file} has no request within the limits",
            remedy="raise trace_max_tokens or max_length",
        )
    return kept
