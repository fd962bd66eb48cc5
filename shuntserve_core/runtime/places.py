"""Where a cluster keeps what must outlive its control plane."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from shuntserve_core.errors import UserError
from shuntserve_core.files import private_dir, write_private

if TYPE_CHECKING:
    from shuntserve_core.config.loader import Config


def state_dir_of(config: Config) -> Path:
    """The directory that keeps this cluster's addresses, secrets and logs."""
    from shuntserve_core.config.fields import resolved

    given = config.document.serve.state_dir
    if given is not None:
        return resolved(config.file.parent, given)
    return default_state_root() / config.file.stem


def announce(state_dir: Path) -> Path:
    """Let `shuntserve status` find a running cluster; remove the file that is returned later."""
    directory = _announcements()
    private_dir(directory)
    place = str(state_dir.resolve())
    file = directory / hashlib.sha256(place.encode()).hexdigest()[:16]
    write_private(file, place)
    return file


def announced() -> list[Path]:
    """State directories of clusters that run, or did until they were killed."""
    directory = _announcements()
    files = sorted(directory.iterdir()) if directory.is_dir() else []
    return [Path(file.read_text()) for file in files]


def _announcements() -> Path:
    return default_state_root() / "running"


def default_state_root() -> Path:
    """Where clusters without a `state_dir` of their own are kept."""
    try:
        base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError as error:
        remedy = "set HOME or XDG_STATE_HOME, or give serve.state_dir"
        raise UserError("this user has no home directory", remedy=remedy) from error
    return Path(base) / "shuntserve"
