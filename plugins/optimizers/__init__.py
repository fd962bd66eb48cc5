"""Searches for placements that come with shuntserve."""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve_core.hookspecs import Provider, hookimpl


@hookimpl
def shuntserve_register_optimizers() -> Iterable[Provider]:
    """Ours, the published one, and those it was compared with."""
    here = "shuntserve_plugins.optimizers"
    yield Provider("exact", f"{here}.exact:Exact", "Jointly best pipelines, with a proved bound")
    yield Provider("beam-search", f"{here}.beam_search:BeamSearch", "DP of arXiv 2606.18600")
    yield Provider("hexgen", f"{here}.hexgen:HexGen", "Genetic search of HexGen")
    yield Provider("alpaserve", f"{here}.alpaserve:AlpaServe", "Stage-balancing DP of AlpaServe")
    yield Provider(
        "single-pipeline", f"{here}.single_pipeline:SinglePipeline", "Even layers, one type each"
    )
