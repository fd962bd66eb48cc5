"""Python's garbage collector in a process that serves: it stops every stream while it looks.

What a request leaves behind is freed as its last reference goes, so there is little to find; yet
the collector's usual settings have it look at every young object dozens of times a second, and now
and then at all that was ever imported.
"""

from __future__ import annotations

import gc

YOUNG = 20_000
"""Objects made and not freed before the collector looks at them; a few megabytes."""


def settle() -> None:
    """Exempt the objects made so far, which stay, and look less often at new ones."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
