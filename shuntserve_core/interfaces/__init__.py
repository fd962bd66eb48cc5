"""What plugins implement: small protocols, and the values that pass through them.

A protocol names everything that the core uses of a plugin.  Members that a plugin may lack are
marked `optional`, and the core then does what their body does; whole groups of them are protocols
of their own, which the core asks for with `isinstance`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

OPTIONAL = "__optional__"
_Method = TypeVar("_Method", bound=Callable[..., Any])


def optional(method: _Method) -> _Method:
    """Marks a method of a protocol that a plugin's class may lack."""
    setattr(method, OPTIONAL, True)
    return method
