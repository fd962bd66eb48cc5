from __future__ import annotations

import os
import subprocess

import pytest

from shuntserve_core.processes import has_ended, identity_of, runs


def test_a_process_is_told_from_a_later_one_of_its_number() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        identity = identity_of(process.pid)
        assert runs(identity)
        assert not has_ended(identity)
        machine, pid, start = identity.rsplit(" ", 2)
        reused = f"{machine} {pid} {int(start) - 1}"
        assert not runs(reused)
        assert has_ended(reused)
        process.kill()
    assert not runs(identity)
    assert has_ended(identity)


def test_this_process_runs() -> None:
    assert identity_of() == identity_of(os.getpid())
    assert runs(identity_of())


@pytest.mark.parametrize("text", ["", "x", "another-boot pid:[1] 1 1", "a b c", "a b -1 1"])
def test_what_cannot_be_seen_from_here_has_not_ended(text: str) -> None:
    assert not runs(text)
    assert not has_ended(text)
