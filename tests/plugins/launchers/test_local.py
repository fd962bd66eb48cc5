"""Why an agent of this machine did not start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.launcher import NodeSpec
from shuntserve_plugins.launchers.local import LocalLauncher


async def test_an_agent_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    launcher = LocalLauncher()
    await launcher.open(tmp_path)
    many: Any = "many"  # no agent has that many GPUs
    with pytest.raises(UserError, match=r"^the agent of odd#0 did not start; see ") as caught:
        await launcher.launch(NodeSpec("odd#0", "odd", many))
    head, *quoted = str(caught.value).splitlines()
    assert Path(head.rpartition("see ")[2]).is_relative_to(tmp_path)
    assert "invalid int value: 'many'" in quoted[-1]
    assert await launcher.adopt() == []
