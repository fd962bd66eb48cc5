"""Everything a plugin can add to shuntserve, on one page.

A plugin is a module (or any object) that an installed package names in the entry-point group
`shuntserve`.  It implements some of the functions below under the same name, marked `hookimpl`:

    from shuntserve_core.hookspecs import hookimpl
    from shuntserve_core.types import GpuSpec

    @hookimpl
    def shuntserve_register_gpus():
        yield GpuSpec(name="B42", memory_bytes=96_000_000_000, ...)

Each hook is called once, when the first thing of its kind is looked up.  It returns or yields any
number of values; one that cannot be used takes down itself alone, and `shuntserve plugins` says
why.  What cannot be registered on this machine may be yielded as `Unusable`, with the reason.
A hook may leave out arguments that it does not need.

Hardware is registered as values.  Everything else is registered as a `Provider`: a name and an
import string that is only followed when somebody asks for that name, so that listing plugins
imports nothing heavy.  What the import string leads to is a class that implements the protocol
named at the hook.  Its attrs fields are the options that a user may set in the TOML table of that
kind; one of the type `pathlib.Path` is relative to the configuration file.  Weight stores take
theirs from their URL, and checks have none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy
from attrs import frozen

if TYPE_CHECKING:
    from shuntserve_core.types import GpuSpec, InstanceType

GROUP = "shuntserve"
"""The entry-point group, and the name of the pluggy project."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@frozen
class Provider:
    """Something that is imported when it is first used."""

    name: str
    """What users write in TOML and on the command line."""
    target: str
    """Where the class is: `package.module:Class`."""
    summary: str = ""
    """One line for `shuntserve plugins`."""


@frozen
class Unusable:
    """Something that a plugin has, but cannot register: listed with the reason, and no more."""

    name: str
    reason: str
    """On one line."""


@hookspec
def shuntserve_register_gpus() -> Iterable[GpuSpec | Unusable]:
    """GPUs: memory, FLOP/s by dtype, memory bandwidth, efficiency, and the source of each."""
    raise AssertionError


@hookspec
def shuntserve_register_instance_types(
    gpus: dict[str, GpuSpec],
) -> Iterable[InstanceType | Unusable]:
    """What clouds rent.  `gpus` holds every registered GPU by name."""
    raise AssertionError


@hookspec
def shuntserve_register_estimators() -> Iterable[Provider | Unusable]:
    """Predictors of throughput and latency: `interfaces.estimator.Estimator`."""
    raise AssertionError


@hookspec
def shuntserve_register_optimizers() -> Iterable[Provider | Unusable]:
    """Searches for placements: `interfaces.optimizer.Optimizer`."""
    raise AssertionError


@hookspec
def shuntserve_register_balancers() -> Iterable[Provider | Unusable]:
    """Choosers of the pipeline for a request: `interfaces.balancer.Balancer`."""
    raise AssertionError


@hookspec
def shuntserve_register_spot_sources() -> Iterable[Provider | Unusable]:
    """Sources of interruption notices: `interfaces.cloud.SpotSource`."""
    raise AssertionError


@hookspec
def shuntserve_register_provisioners() -> Iterable[Provider | Unusable]:
    """Getters and releasers of instances; nothing uses them yet: `interfaces.cloud.Provisioner`."""
    raise AssertionError


@hookspec
def shuntserve_register_weight_stores() -> Iterable[Provider | Unusable]:
    """Object stores for weights; the name is the URL scheme: `interfaces.store.WeightStore`."""
    raise AssertionError


@hookspec
def shuntserve_register_engines() -> Iterable[Provider | Unusable]:
    """What runs a pipeline, token ids in and token ids out: `interfaces.engine.Engine`."""
    raise AssertionError


@hookspec
def shuntserve_register_frontdoors() -> Iterable[Provider | Unusable]:
    """Servers that clients talk to: `interfaces.frontdoor.FrontDoor`."""
    raise AssertionError


@hookspec
def shuntserve_register_launchers() -> Iterable[Provider | Unusable]:
    """Ways to bring node agents to life: `interfaces.launcher.Launcher`."""
    raise AssertionError


@hookspec
def shuntserve_register_checks() -> Iterable[Provider | Unusable]:
    """What `shuntserve doctor` looks at on a machine: `interfaces.check.Check`."""
    raise AssertionError
