"""Finding plugins: discovery, lazy loading, and errors that say what there is instead."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib import metadata
from types import ModuleType
from typing import Any

import pluggy
from attrs import evolve, frozen

from shuntserve_core import hookspecs
from shuntserve_core.errors import UserError, did_you_mean
from shuntserve_core.hookspecs import GROUP, Provider
from shuntserve_core.types import GpuSpec, InstanceType

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


@frozen
class Entry:
    """A registered thing and the plugin that it comes from."""

    kind: str
    name: str
    value: Any
    plugin: PluginInfo

    @property
    def summary(self) -> str:
        """One line about it, where the plugin gave one."""
        return getattr(self.value, "summary", "") or getattr(self.value, "source", "")


class Registry:
    """All plugins of this installation.

    `disabled` names entry points to leave out (in addition to the environment variable
    `SHUNTSERVE_DISABLE_PLUGINS`); `extra` are plugin objects to use without being installed.
    """

    def __init__(
        self, *, disabled: Iterable[str] = (), extra: Mapping[str, object] | None = None
    ) -> None:
        from_environment = os.environ.get(DISABLE_VARIABLE, "").split(",")
        self._disabled = {name.strip() for name in (*disabled, *from_environment) if name.strip()}
        self._extra = dict(extra or {})
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._failures: dict[str, str] = {}

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
        for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
            found.append(self._load_entry_point(entry))
        for name, plugin in self._extra.items():
            module = getattr(plugin, "__name__", type(plugin).__name__)
            found.append(self._register(PluginInfo(name, "(not installed)", "", module), plugin))
        return tuple(found)

    def _load_entry_point(self, entry: metadata.EntryPoint) -> PluginInfo:
        package = entry.dist.name if entry.dist else "unknown"
        version = entry.dist.version if entry.dist else ""
        info = PluginInfo(entry.name, package, version, entry.value)
        if self._disabled & {entry.name, "*"}:
            return evolve(info, disabled=True)
        try:
            plugin = entry.load()
        except (Exception, SystemExit) as error:  # whatever a broken plugin raises is reported
            return evolve(info, error=_describe(error))
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
            self._manager.register(plugin, name=f"{info.package}:{info.name}")
            self._manager.check_pending()
        except Exception as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            return evolve(info, error=_describe(error))
        callers = self._manager.get_hookcallers(plugin) or []
        return evolve(info, hooks=tuple(caller.name for caller in callers))

    def entries(self, kind: str) -> Mapping[str, Entry]:
        """Everything registered of a kind, by name."""
        return self._collected[kind]

    @cached_property
    def _collected(self) -> dict[str, dict[str, Entry]]:
        collected: dict[str, dict[str, Entry]] = {}
        for kind in KINDS:
            arguments = {}
            if kind == "instance-type":
                arguments["gpus"] = {n: e.value for n, e in collected["gpu"].items()}
            collected[kind] = self._collect(kind, arguments)
        return collected

    def _collect(self, kind: str, arguments: dict[str, Any]) -> dict[str, Entry]:
        """Call one hook plugin by plugin, so that a failing one stops no other."""
        entries: dict[str, Entry] = {}
        for info in self.plugins:
            key = f"{info.package}:{info.name}"
            plugin = self._manager.get_plugin(key)
            if plugin is None or KINDS[kind] not in info.hooks:
                continue
            others = [p for p in self._manager.get_plugins() if p is not plugin]
            call = self._manager.subset_hook_caller(KINDS[kind], others)
            try:
                for values in call(**arguments):
                    for value in values:
                        self._add(entries, Entry(kind, _checked(kind, value).name, value, info))
            except (Exception, SystemExit) as error:
                self._failures[key] = f"{KINDS[kind]}: {_describe(error)}"
        return entries

    def _add(self, entries: dict[str, Entry], entry: Entry) -> None:
        taken = entries.get(entry.name)
        if taken is not None:
            raise ValueError(
                f"{entry.kind} {entry.name!r} is already provided by {taken.plugin.package}"
            )
        entries[entry.name] = entry

    @cached_property
    def failures(self) -> Mapping[str, str]:
        """Plugins that could not be used, `package:name` to reason.  Calls every hook."""
        failed = {f"{p.package}:{p.name}": p.error for p in self.plugins if p.error}
        _ = self._collected
        return {**failed, **self._failures}

    def get(self, kind: str, name: str, *, where: str = "") -> Any:
        """The value of that name, imported if it is a `Provider`.

        Raises `UserError` that lists what is there, the nearest match, and failed plugins.
        """
        entry = self.entries(kind).get(name)
        if entry is None:
            raise UserError(f"unknown {kind} {name!r}", where=where, remedy=self.remedy(kind, name))
        if not isinstance(entry.value, Provider):
            return entry.value
        try:
            return _follow(entry.value.target)
        except Exception as error:  # whatever the import of a plugin's module raises
            package = entry.plugin.package
            remedy = f"report it to the authors of {package}, or use another {kind}"
            if isinstance(error, ModuleNotFoundError):
                remedy = f"install what provides {error.name!r}, or all of {package}'s extras"
            raise UserError(
                f"{kind} {name!r} of package {package} cannot be imported: {_describe(error)}",
                where=where,
                remedy=remedy,
            ) from error

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
        return {name: entry.value for name, entry in self.entries("gpu").items()}

    @property
    def instance_types(self) -> dict[str, InstanceType]:
        """Registered instance types by name."""
        return {name: entry.value for name, entry in self.entries("instance-type").items()}


def _checked(kind: str, value: Any) -> Any:
    wanted = {"gpu": GpuSpec, "instance-type": InstanceType}.get(kind, Provider)
    if not isinstance(value, wanted):
        raise TypeError(f"expected a {wanted.__name__}, got {value!r}")
    return value


def _follow(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    module: ModuleType = importlib.import_module(module_name)
    return getattr(module, attribute)


def _describe(error: BaseException) -> str:
    """The error on one line of bearable length."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= 300 else f"{text[:297]}..."
