"""Where a part runs."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen


@frozen
class Place:
    """The device, and a folder that is gone afterwards."""

    device: str
    """`cpu`, or `cuda:0`."""
    scratch: Path

    @property
    def on_gpu(self) -> bool:
        """Whether there is one."""
        return self.device != "cpu"
