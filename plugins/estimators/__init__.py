"""Predictors of throughput and latency that come with shuntserve."""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve_core.hookspecs import Provider, hookimpl


@hookimpl
def shuntserve_register_estimators() -> Iterable[Provider]:
    """The published model, and ours."""
    here = "shuntserve_plugins.estimators"
    yield Provider("paper", f"{here}.paper:Paper", "The model of arXiv 2606.18600, as published")
    yield Provider("roofline", f"{here}.roofline:Roofline", "The default: without its slips")
