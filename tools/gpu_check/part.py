"""The process of one part: `python -m gpu_check.part NAME --device D --rows FILE --scratch DIR`."""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import os
import sys
from pathlib import Path

from gpu_check.place import Place
from gpu_check.rows import SKIPPED, Record, Skip


def main() -> int:
    """Run it; its rows say how it went."""
    faulthandler.enable()
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--device", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    options = parser.parse_args()
    record = Record(options.name, options.rows)
    try:
        module = importlib.import_module(f"gpu_check.parts.{options.name}")
        module.run(record, Place(options.device, options.scratch))
    except Skip as reason:
        record.add("all", SKIPPED, {}, str(reason))
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads and contexts of what was killed must not hold it up
