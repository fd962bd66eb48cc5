"""Profiles from files, and results into files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cattrs
import numpy as np

from shuntserve_core.errors import UserError
from shuntserve_core.foreign import parse_json
from shuntserve_core.simulator.profile import PROFILES, EngineProfile, profile_named
from shuntserve_core.simulator.result import Result

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
    "Pipeline",
)
"""Those of `shuntserve bench`, and the pipeline that finished the request."""
TIMELINE_BINS = 240


def read_profile(name: str) -> EngineProfile:
    """A profile by name, or from a JSON file whose keys replace those of the profile that it names
    in `like`.  Raises `UserError`."""
    file = Path(name)
    if name in PROFILES or not file.suffix:
        return profile_named(name)
    try:
        data = parse_json(file.read_text(encoding="utf-8"))
        like = profile_named(str(data.pop("like", "vllm")))
        facts = cattrs.unstructure(like) | {"name": file.stem} | data
        return cattrs.structure(facts, EngineProfile)
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise UserError(f"cannot read it: {reason}", where=name, remedy="give a file") from error
    except UserError:
        raise
    except Exception as error:  # JSON's, or cattrs' own groups
        raise UserError(
            f"not an engine profile: {error}", where=name, remedy="see docs/how-to/simulate.md"
        ) from error


def profile_to_json(profile: EngineProfile) -> dict[str, Any]:
    """What `read_profile` reads back."""
    facts: dict[str, Any] = cattrs.unstructure(profile)
    return facts


def write_result(folder: Path, result: Result) -> None:
    """`summary.json`, `requests.csv`, `timeline.json` and `notes.json` in a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "summary.json", result.summary())
        timeline = result.timeline(max(result.seconds / TIMELINE_BINS, 1.0))
        _write_json(folder / "timeline.json", timeline)
        notes = [{"at": note.at, "what": note.what, **note.facts} for note in result.notes]
        _write_json(folder / "notes.json", {"notes": notes, "pipelines": list(result.pipelines)})
        _write_requests(folder / "requests.csv", result)
    except OSError as error:
        reason = (error.strerror or "failed").lower()
        raise UserError(
            f"cannot write {folder}: {reason}", where="--out", remedy="name a folder"
        ) from error


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _write_requests(file: Path, result: Result) -> None:
    record = result.record
    arrivals, prompts, answers = record.requests.columns()
    firsts, ends = np.frombuffer(record.first).tolist(), np.frombuffer(record.end).tolist()
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(COLUMNS)
        for number, (at, first, end) in enumerate(zip(arrivals, firsts, ends, strict=True)):
            done, answer = end >= 0, answers[number]
            where = record.pipeline[number]
            tpot = (end - first) / (answer - 1) if done and answer > 1 else None
            writer.writerow(
                [
                    number,
                    f"{at:.6f}",
                    f"{end:.6f}" if done else "",
                    prompts[number],
                    answer if done else "",
                    f"{end - at:.6f}" if done else "",
                    f"{first - at:.6f}" if first >= 0 else "",
                    "" if tpot is None else f"{tpot:.6f}",
                    done,
                    record.names[where] if where >= 0 else "",
                ]
            )
