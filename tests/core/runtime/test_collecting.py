from __future__ import annotations

import gc

from shuntserve_core.runtime.collecting import YOUNG, settle


def test_settles_once_and_for_all() -> None:
    before = gc.get_threshold()
    try:
        settle()
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold() == (YOUNG, *before[1:])
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
