"""The ways to answer an interruption that can be compared (arXiv 2606.18600)."""

from __future__ import annotations

from attrs import frozen


@frozen
class Strategy:
    """What is done, and what is left out."""

    name: str
    concurrent: bool
    """Concurrent initialization: the next engine starts beside the old one, on weights that tensor
    stores already hold.  Without it the old one is stopped first, and weights are read anew."""
    migrate: bool
    """Requests move with the tokens that they have.  Without it they begin again."""

    @classmethod
    def named(cls, name: str) -> Strategy:
        """One of `shuntserve`, `migration`, `concurrent-init`, `none`."""
        return {
            "shuntserve": cls(name, concurrent=True, migrate=True),
            "concurrent-init": cls(name, concurrent=True, migrate=False),
            "migration": cls(name, concurrent=False, migrate=True),
            "none": cls(name, concurrent=False, migrate=False),
        }[name]
