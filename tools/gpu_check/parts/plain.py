"""(e) As `engines`, in vLLM's default mode: equality is counted, not asked for."""

from __future__ import annotations

from gpu_check.parts.engines import switch
from gpu_check.place import Place
from gpu_check.rows import Record


def run(record: Record, place: Place) -> None:
    """Two engines in turn."""
    switch(record, place, invariant=False)
