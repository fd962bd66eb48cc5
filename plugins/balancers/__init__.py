"""Choosers of the pipeline for a request, bundled."""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve_core.hookspecs import Provider, hookimpl


@hookimpl
def shuntserve_register_balancers() -> Iterable[Provider]:
    """By throughput, by work at hand, or in turn."""
    here = "shuntserve_plugins.balancers"
    yield Provider(
        "weighted-round-robin",
        f"{here}.weighted:WeightedRoundRobin",
        "The default: in proportion to estimated throughput",
    )
    yield Provider(
        "least-outstanding",
        f"{here}.outstanding:LeastOutstanding",
        "Where the tokens still to come take the least time",
    )
    yield Provider("round-robin", f"{here}.plain:RoundRobin", "In turn")
