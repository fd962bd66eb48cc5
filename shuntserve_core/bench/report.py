"""The CSV file and the summary of a run."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shuntserve_core.bench.calls import Result
from shuntserve_core.files import unwritable

COLUMNS = (
    "RequestID",
    "ArrivalTime",
    "CompletionTime",
    "InputTokens",
    "OutputTokens",
    "Latency",
    "TTFT",
    "TPOT",
    "Success",
)
"""Times are in seconds, the first two after the start of the run."""
PERCENTILES = (50, 90, 95, 99)


def write_csv(path: Path, results: Iterable[Result]) -> None:
    """One row a request; what does not exist is empty.  Raises `UserError`."""
    try:
        _write_csv(path, results)
    except OSError as error:
        raise unwritable(error, path) from error


def _write_csv(path: Path, results: Iterable[Result]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for r in results:
            times = (r.latency, r.ttft, r.tpot)
            writer.writerow(
                [
                    r.request_id,
                    f"{r.arrival:.6f}",
                    f"{r.completion:.6f}",
                    r.input_tokens,
                    r.output_tokens,
                    *("" if value is None else f"{value:.6f}" for value in times),
                    r.success,
                ]
            )


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Counts, rates, and percentiles in seconds of the requests that succeeded."""
    good = [r for r in results if r.success]
    begin = min((r.arrival for r in results), default=0.0)
    seconds = max((r.completion for r in results), default=0.0) - begin
    return {
        "requests": len(results),
        "succeeded": len(good),
        "failed": len(results) - len(good),
        "errors": dict(Counter(r.error for r in results if r.error).most_common()),
        "seconds": seconds,
        "requests_per_second": _rate(len(good), seconds),
        "input_tokens_per_second": _rate(sum(r.input_tokens for r in good), seconds),
        "output_tokens_per_second": _rate(sum(r.output_tokens for r in good), seconds),
        "latency": spread([r.latency for r in good]),
        "ttft": spread([r.ttft for r in good if r.ttft is not None]),
        "tpot": spread([r.tpot for r in good if r.tpot is not None]),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, percentiles (nearest rank) and the largest; empty without values."""
    if not values:
        return {}
    row = sorted(values)
    cuts = {f"p{p}": row[max(0, -(-len(row) * p // 100) - 1)] for p in PERCENTILES}
    return {"mean": sum(row) / len(row), **cuts, "max": row[-1]}


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
