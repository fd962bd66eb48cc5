"""Where a cluster keeps what must outlive its control plane."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shuntserve_core.config.loader import Config


def state_dir_of(config: Config) -> Path:
    """The directory that keeps this cluster's addresses, secrets and logs."""
    given = config.document.serve.state_dir
    if given is not None:
        return config.file.parent / given
    return default_state_root() / config.file.stem


def default_state_root() -> Path:
    """Where clusters without a `state_dir` of their own are kept."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "shuntserve"
