"""Finding plugins: discovery, lazy loading, and errors that say what there is instead."""

from __future__ import annotations

import importlib
import inspect
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, overload

import pluggy
from attrs import evolve, frozen

from shuntserve_core import hookspecs
from shuntserve_core.errors import UserError, did_you_mean
from shuntserve_core.hookspecs import GROUP, Provider, Unusable
from shuntserve_core.registered import class_trouble, described, shortened, value_trouble
from shuntserve_core.types import GpuSpec, InstanceType

if TYPE_CHECKING:
    from shuntserve_core.interfaces.balancer import Balancer
    from shuntserve_core.interfaces.check import Check
    from shuntserve_core.interfaces.cloud import Provisioner, SpotSource
    from shuntserve_core.interfaces.engine import Engine
    from shuntserve_core.interfaces.estimator import Estimator
    from shuntserve_core.interfaces.frontdoor import FrontDoor
    from shuntserve_core.interfaces.launcher import Launcher
    from shuntserve_core.interfaces.optimizer import Optimizer
    from shuntserve_core.interfaces.store import WeightStore

DISABLE_VARIABLE = "SHUNTSERVE_DISABLE_PLUGINS"
"""Environment variable: entry-point names to leave out, separated by commas; `*` is all."""

HOOKS = tuple(
    name
    for name, value in vars(hookspecs).items()
    if inspect.isfunction(value) and name.startswith("shuntserve_register_")
)
KINDS: Mapping[str, str] = {
    name.removeprefix("shuntserve_register_").replace("_", "-")[:-1]: name for name in HOOKS
}
"""Hook of each kind: `optimizer`, `weight-store`..."""


@frozen
class PluginInfo:
    """One entry point, loaded or not."""

    name: str
    package: str
    version: str
    module: str
    hooks: tuple[str, ...] = ()
    error: str = ""
    """Why it is not loaded; empty if it is."""
    disabled: bool = False

    @property
    def key(self) -> str:
        """`package:name`: what tells plugins of one name apart."""
        return f"{self.package}:{self.name}"


Value = GpuSpec | InstanceType | Provider
"""What a hook registers."""


@frozen
class Entry:
    """A registered thing and the plugin that it comes from."""

    kind: str
    name: str
    value: Value
    plugin: PluginInfo

    @property
    def summary(self) -> str:
        """One line about it, where the plugin gave one."""
        if isinstance(self.value, InstanceType):
            return ""
        return self.value.summary if isinstance(self.value, Provider) else self.value.source


class Registry:
    """All plugins of this installation.

    `disabled` names entry points to leave out (in addition to the environment variable
    `SHUNTSERVE_DISABLE_PLUGINS`), as `name` or `package:name`; `extra` are plugin objects to use
    without being installed.
    """

    def __init__(
        self, *, disabled: Iterable[str] = (), extra: Mapping[str, object] | None = None
    ) -> None:
        from_environment = os.environ.get(DISABLE_VARIABLE, "").split(",")
        self._disabled = {name.strip() for name in (*disabled, *from_environment) if name.strip()}
        self._extra = dict(extra or {})
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._failures: defaultdict[str, list[str]] = defaultdict(list)

    @property
    def disabled(self) -> tuple[str, ...]:
        """Names that are left out: what other processes of a cluster must leave out too."""
        return tuple(sorted(self._disabled))

    def without(self, names: Iterable[str]) -> Registry:
        """The same plugins less some entry points; this registry itself if there are none."""
        names = set(names)
        if not names:
            return self
        return Registry(disabled=self._disabled | names, extra=self._extra)

    @cached_property
    def plugins(self) -> tuple[PluginInfo, ...]:
        """Every plugin found, in the order of their names, with what failed and why."""
        found = []
        for entry in sorted(metadata.entry_points(group=GROUP), key=_precedence):
            found.append(self._load_entry_point(entry))
        for name, plugin in self._extra.items():
            module = getattr(plugin, "__name__", type(plugin).__name__)
            found.append(self._register(PluginInfo(name, "(not installed)", "", module), plugin))
        return tuple(found)

    def _load_entry_point(self, entry: metadata.EntryPoint) -> PluginInfo:
        package = entry.dist.name if entry.dist else "unknown"
        version = entry.dist.version if entry.dist else ""
        info = PluginInfo(entry.name, package, version, entry.value)
        if self._disabled & {entry.name, info.key, "*"}:
            return evolve(info, disabled=True)
        try:
            plugin = entry.load()
        except (Exception, SystemExit) as error:  # whatever a broken plugin raises is reported
            return evolve(info, error=described(error))
        return self._register(info, plugin)

    def _register(self, info: PluginInfo, plugin: object) -> PluginInfo:
        unknown = [
            name
            for name in dir(plugin)
            if name.startswith("shuntserve_")
            and name not in HOOKS
            and callable(getattr(plugin, name))
        ]
        if unknown:
            remedy = did_you_mean(unknown[0], HOOKS)
            return evolve(info, error=f"no hook is called {unknown[0]}; {remedy}")
        try:
            hash(plugin)  # pluggy keeps plugins in sets
            if self._manager.is_registered(plugin):
                other = self._manager.get_name(plugin)
                return evolve(info, error=f"it is the same module as the plugin {other}")
            self._manager.register(plugin, name=info.key)
            self._manager.check_pending()
        except Exception as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            return evolve(info, error=described(error))
        callers = self._manager.get_hookcallers(plugin) or []
        return evolve(info, hooks=tuple(caller.name for caller in callers))

    def entries(self, kind: str) -> Mapping[str, Entry]:
        """Everything registered of a kind, by name."""
        return self._collected[kind]

    @cached_property
    def _collected(self) -> dict[str, dict[str, Entry]]:
        collected: dict[str, dict[str, Entry]] = {}
        for kind in KINDS:
            entries = collected[kind] = {}
            for info in self.plugins:
                if KINDS[kind] in info.hooks:
                    self._collect(kind, info, _arguments(kind, collected), entries)
        return collected

    def _collect(
        self, kind: str, info: PluginInfo, arguments: dict[str, Any], entries: dict[str, Entry]
    ) -> None:
        """Call one hook of one plugin: what fails stops no other plugin, nor other values of it."""
        failures = self._failures[info.key]
        try:
            for value in self._values(kind, info, arguments):
                if isinstance(value, Unusable):
                    failures.append(shortened(f"{kind} {value.name}: {value.reason}"))
                    continue
                name = getattr(value, "name", "")
                trouble = value_trouble(kind, value)
                if not trouble and name in entries:
                    trouble = f"is already provided by {entries[name].plugin.key}"
                if trouble:
                    failures.append(shortened(f"{kind} {name}".strip() + f": {trouble}"))
                else:
                    entries[name] = Entry(kind, name, value, info)
        except (Exception, SystemExit) as error:
            failures.append(f"{KINDS[kind]}: {described(error)}")

    def _values(self, kind: str, info: PluginInfo, arguments: dict[str, Any]) -> Iterator[Any]:
        """What a plugin's hook returns, one by one.  Raises whatever the plugin raises."""
        plugin = self._manager.get_plugin(info.key)
        others = [p for p in self._manager.get_plugins() if p is not plugin]
        answers = self._manager.subset_hook_caller(KINDS[kind], others)(**arguments)
        if not answers:
            raise TypeError("it returned None, not a list: yield values, or return []")
        for values in answers:
            if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
                raise TypeError(f"it returned a {type(values).__name__}, not a list of values")
            yield from values

    @cached_property
    def failures(self) -> Mapping[str, str]:
        """Plugins that could not be used, `package:name` to reason.  Calls every hook."""
        _ = self._collected
        found = {p.key: [p.error] if p.error else self._failures[p.key] for p in self.plugins}
        return {key: "; ".join(reasons) for key, reasons in found.items() if reasons}

    @overload
    def get(self, kind: Literal["estimator"], name: str, *, where: str = "") -> type[Estimator]: ...
    @overload
    def get(self, kind: Literal["optimizer"], name: str, *, where: str = "") -> type[Optimizer]: ...
    @overload
    def get(self, kind: Literal["balancer"], name: str, *, where: str = "") -> type[Balancer]: ...
    @overload
    def get(
        self, kind: Literal["spot-source"], name: str, *, where: str = ""
    ) -> type[SpotSource]: ...
    @overload
    def get(
        self, kind: Literal["provisioner"], name: str, *, where: str = ""
    ) -> type[Provisioner]: ...
    @overload
    def get(
        self, kind: Literal["weight-store"], name: str, *, where: str = ""
    ) -> type[WeightStore]: ...
    @overload
    def get(self, kind: Literal["engine"], name: str, *, where: str = "") -> type[Engine]: ...
    @overload
    def get(self, kind: Literal["frontdoor"], name: str, *, where: str = "") -> type[FrontDoor]: ...
    @overload
    def get(self, kind: Literal["launcher"], name: str, *, where: str = "") -> type[Launcher]: ...
    @overload
    def get(self, kind: Literal["check"], name: str, *, where: str = "") -> type[Check]: ...
    @overload
    def get(self, kind: str, name: str, *, where: str = "") -> type[object]: ...
    def get(self, kind: str, name: str, *, where: str = "") -> type[object]:
        """The class of that name, imported, and known to implement the protocol of its kind.

        Hardware is no class: see `gpus` and `instance_types`.  Raises `UserError` that lists what
        is there, the nearest match, and failed plugins.
        """
        entry = self.entries(kind).get(name)
        if entry is None:
            raise UserError(f"unknown {kind} {name!r}", where=where, remedy=self.remedy(kind, name))
        if not isinstance(entry.value, Provider):
            raise TypeError(f"{kind} {name} is a value, no class")
        package = entry.plugin.package
        remedy = f"report it to the authors of {package}, or use another {kind}"
        try:
            found = _follow(entry.value.target)
        except (Exception, SystemExit) as error:  # whatever a plugin's module raises
            if isinstance(error, ModuleNotFoundError):
                remedy = f"install what provides {error.name!r}, or all of {package}'s extras"
            raise UserError(
                f"{kind} {name!r} of package {package} cannot be imported: {described(error)}",
                where=where,
                remedy=remedy,
            ) from error
        if trouble := class_trouble(kind, found):
            raise UserError(
                f"{kind} {name!r} of package {package} cannot be used: {trouble}",
                where=where,
                remedy=remedy,
            )
        assert isinstance(found, type)
        return found

    def remedy(self, kind: str, name: str, *, also: Iterable[str] = ()) -> str:
        """What to do about an unknown name: the nearest, all there are, and failed plugins.

        `also` are names that exist without being registered.
        """
        entries = self.entries(kind)
        packages = ", ".join(sorted({entry.plugin.package for entry in entries.values()}))
        remedy = did_you_mean(name, {*entries, *also}) + (f" (from {packages})" if packages else "")
        if self.failures:
            broken = "; ".join(f"{key}: {reason}" for key, reason in self.failures.items())
            remedy += f"; plugins that failed to load: {broken}"
        return remedy

    @property
    def gpus(self) -> dict[str, GpuSpec]:
        """Registered GPUs by name."""
        values = {name: entry.value for name, entry in self.entries("gpu").items()}
        return {name: value for name, value in values.items() if isinstance(value, GpuSpec)}

    @property
    def instance_types(self) -> dict[str, InstanceType]:
        """Registered instance types by name."""
        values = {name: entry.value for name, entry in self.entries("instance-type").items()}
        return {name: value for name, value in values.items() if isinstance(value, InstanceType)}


def _arguments(kind: str, collected: Mapping[str, Mapping[str, Entry]]) -> dict[str, Any]:
    """What a kind's hook is given: made for each plugin anew, as it may change it."""
    if kind == "instance-type":
        return {"gpus": {name: entry.value for name, entry in collected["gpu"].items()}}
    return {}


def _precedence(entry: metadata.EntryPoint) -> tuple[bool, str, str]:
    """The order in which plugins are asked; the first to provide a name keeps it.

    Bundled ones come first, so that what a file means does not depend on what else is installed.
    """
    package = entry.dist.name if entry.dist else ""
    return package != GROUP, entry.name, package


def _follow(target: str) -> object:
    module_name, _, attribute = target.partition(":")
    module: ModuleType = importlib.import_module(module_name)
    found: object = getattr(module, attribute)
    return found
