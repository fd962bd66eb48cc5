from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.core.weights import push_to_nowhere
from tests.core.weights.push_to_nowhere import LARGEST

HELD = 64 << 20
PROGRAM = 128 << 20


def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    command = [sys.executable, push_to_nowhere.__file__, str(tmp_path), "5", str(HELD)]
    done = subprocess.run(command, capture_output=True, check=True)
    figures = json.loads(done.stdout)
    bound = PROGRAM + 2 * HELD + 2 * LARGEST
    assert figures["total"] > 2 * bound
    assert figures["peak"] < bound
