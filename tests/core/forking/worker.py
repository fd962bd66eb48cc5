"""A worker that says what it was born with, and then does as it is told."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from pathlib import Path

IMPORTED_BY = os.getpid()

if "START_A_THREAD" in os.environ:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
if "FAIL_TO_IMPORT" in os.environ:
    raise ImportError("as asked for")


def main() -> None:
    """The process."""
    said = {
        "imported_by": IMPORTED_BY,
        "pid": os.getpid(),
        "parent": os.getppid(),
        "group": os.getpgid(0),
        "session": os.getsid(0),
        "directory": str(Path.cwd()),
        "files": sorted(int(path.name) for path in Path("/proc/self/fd").iterdir())[:-1],
        "common": os.environ.get("COMMON"),
        "own": os.environ.get("OWN"),
        "sigterm_default": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "random": random.random(),
        "told": sys.stdin.readline().strip(),
    }
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()
    sys.stderr.write(f"{os.getpid()} was here\n")
    if said["told"] == "fail":
        raise RuntimeError("as asked for")
    if said["told"].startswith("exit"):
        sys.exit(int(said["told"].split()[1]))
    sys.stdin.read()  # until the agent closes it


if __name__ == "__main__":
    main()
