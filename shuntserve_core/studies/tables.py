"""A study's results for programs: CSV, JSON, and Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAMES = ("experiment", "label", "placement", "workload", "events", "strategy", "profile")
SPREADS = ("latency", "ttft", "ttft_after_queue", "tpot")


def flat(run: Mapping[str, Any]) -> dict[str, Any]:
    """One row: names, the summary, and percentiles as `ttft_p50` and so on."""
    row = {name: run[name] for name in NAMES}
    row["error"] = run["error"]
    row["predicted_rps"] = run.get("predicted_rps")
    for key, value in run.get("summary", {}).items():
        if key in SPREADS:
            row |= {f"{key}_{name}": each for name, each in (value or {}).items()}
        else:
            row[key] = value
    return row


def write_tables(folder: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """`results.json` with everything; `results.csv` and perhaps `results.parquet` with rows."""
    text = json.dumps(list(runs), indent=1, allow_nan=False) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")
    rows = [flat(run) for run in runs]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return
    parquet.write_table(pa.Table.from_pylist(rows), folder / "results.parquet")
