"""Whether what a plugin registers can be used: values by their figures, classes by their protocol.

A plugin's module is checked by nobody before it is installed, so that everything is looked at here,
once, and reported by name, instead of failing later in the middle of somebody else's work.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from shuntserve_core.hookspecs import Provider
from shuntserve_core.interfaces import OPTIONAL
from shuntserve_core.types import DTYPE_BYTES, Efficiency, GpuSpec, InstanceType, Link

RESERVED = frozenset(":/,#")
"""Signs that no instance type's name has: they stand between stages and in nodes' names."""
_TARGET = re.compile(r"\w+(\.\w+)*:\w+")
_INTERFACES = {
    "estimator": "estimator:Estimator",
    "optimizer": "optimizer:Optimizer",
    "balancer": "balancer:Balancer",
    "spot-source": "cloud:SpotSource",
    "provisioner": "cloud:Provisioner",
    "weight-store": "store:WeightStore",
    "engine": "engine:Engine",
    "frontdoor": "frontdoor:FrontDoor",
    "launcher": "launcher:Launcher",
    "check": "check:Check",
}
"""Protocol of each kind, below `shuntserve_core.interfaces`."""


def value_trouble(kind: str, value: object) -> str:
    """Why a value cannot be registered as of that kind, on one line; empty if it can."""
    kinds: dict[str, type[Any]] = {"gpu": GpuSpec, "instance-type": InstanceType}
    wanted = kinds.get(kind, Provider)
    if not isinstance(value, wanted):
        return f"expected a {wanted.__name__}, got {shortened(repr(value))}"
    name = getattr(value, "name", None)
    if not isinstance(name, str) or not name or name.strip() != name or not name.isprintable():
        return f"{name!r} is no name"
    if kind != "gpu" and name.split() != [name]:
        return "its name has blanks"
    troubles = {"gpu": _gpu_troubles, "instance-type": _instance_type_troubles}
    return next(troubles.get(kind, _provider_troubles)(value), "")


# What follows looks at values that may hold anything, whatever their types say.


def _provider_troubles(provider: Any) -> Iterator[str]:
    if not isinstance(provider.target, str) or not _TARGET.fullmatch(provider.target):
        yield f"its target {provider.target!r} is not written `package.module:Class`"
    if not isinstance(provider.summary, str):
        yield "its summary is no text"


def _gpu_troubles(gpu: Any) -> Iterator[str]:
    yield from _number_troubles("memory_bytes", gpu.memory_bytes)
    yield from _number_troubles("memory_bandwidth", gpu.memory_bandwidth)
    if not isinstance(gpu.flops, Mapping) or not gpu.flops:
        yield "flops gives no rate: { float16 = FLOP/s }"
        return
    for dtype, rate in gpu.flops.items():
        if dtype not in DTYPE_BYTES:
            yield f"flops has the unknown type {dtype!r}; there are {', '.join(DTYPE_BYTES)}"
        yield from _number_troubles(f"flops of {dtype}", rate)
    if not isinstance(gpu.efficiency, Efficiency):
        yield "efficiency is no Efficiency"
        return
    for attribute in attrs.fields(Efficiency):
        if attribute.name != "source":
            figure = getattr(gpu.efficiency, attribute.name)
            least = 0.0 if attribute.name == "layer_overhead" else None
            yield from _number_troubles(f"efficiency.{attribute.name}", figure, least=least)


def _instance_type_troubles(kind: Any) -> Iterator[str]:
    if RESERVED & set(kind.name):
        yield f"its name has one of the signs {' '.join(sorted(RESERVED))}"
    if not isinstance(kind.gpu, GpuSpec):
        yield f"its gpu is no GpuSpec but {shortened(repr(kind.gpu))}"
        return
    yield from (f"its GPU {kind.gpu.name}: {trouble}" for trouble in _gpu_troubles(kind.gpu))
    if not isinstance(kind.gpu_count, int) or isinstance(kind.gpu_count, bool):
        yield "gpu_count is no whole number"
    for name in ("link", "network"):
        link = getattr(kind, name)
        if not isinstance(link, Link):
            yield f"its {name} is no Link but {shortened(repr(link))}"
            return
        yield from _number_troubles(f"{name}.bandwidth", link.bandwidth)
        yield from _number_troubles(f"{name}.latency", link.latency, least=0.0)
    yield from _number_troubles("price", kind.price, least=0.0)
    if kind.spot_price is not None:
        yield from _number_troubles("spot_price", kind.spot_price, least=0.0)


def _number_troubles(what: str, value: object, *, least: float | None = None) -> Iterator[str]:
    """`least` None: more than 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        yield f"{what} is {shortened(repr(value))}, not a number"
    elif value < 0 or (least is None and value == 0):
        yield f"{what} is {value:g}, and must be {'more than' if least is None else 'at least'} 0"


def class_trouble(kind: str, cls: object) -> str:
    """What a class lacks of its kind's protocol, on one line; empty if it implements it."""
    module, _, attribute = _INTERFACES[kind].partition(":")
    protocol = getattr(importlib.import_module(f"shuntserve_core.interfaces.{module}"), attribute)
    if not isinstance(cls, type):
        return f"it is no class but {shortened(repr(cls))}"
    for name in protocol_members(protocol):
        wanted = inspect.getattr_static(protocol, name, None)
        if not _has(cls, name):
            if getattr(wanted, OPTIONAL, False):
                continue
            return f"it lacks `{name}` of {protocol.__module__}.{attribute}"
        if inspect.isfunction(wanted) and (reason := _call_trouble(cls, name, wanted)):
            return f"{reason}, as {protocol.__module__}.{attribute} wants it"
    return ""


def protocol_members(protocol: type) -> tuple[str, ...]:
    """Methods and attributes that a protocol names, in their order."""
    names: dict[str, None] = {}
    for base in reversed(protocol.__mro__):
        if getattr(base, "_is_protocol", False) and base.__module__ != "typing":
            names.update(dict.fromkeys(inspect.get_annotations(base)))
            names.update(dict.fromkeys(vars(base)))
    return tuple(name for name in names if not name.startswith("_"))


def _has(cls: type, name: str) -> bool:
    if attrs.has(cls) and name in attrs.fields_dict(cls):
        return True
    annotated = any(name in inspect.get_annotations(base) for base in cls.__mro__)
    return annotated or inspect.getattr_static(cls, name, None) is not None


def _call_trouble(cls: type, name: str, wanted: Any) -> str:
    """Why the core's call of a method would fail; empty if it would not."""
    own = inspect.getattr_static(cls, name)
    if not inspect.isfunction(own):
        return "" if callable(getattr(cls, name, None)) else f"its `{name}` is no method"
    positional: list[None] = []
    named: dict[str, None] = {}
    for parameter in inspect.signature(wanted).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[parameter.name] = None
        elif parameter.default is parameter.empty:
            positional.append(None)
    try:
        inspect.signature(own).bind(*positional, **named)
    except TypeError as error:
        return f"its `{name}` cannot be called: {error}"
    return ""


def described(error: BaseException) -> str:
    """An error on one line of bearable length."""
    return shortened(f"{type(error).__name__}: {' '.join(str(error).split())}")


def shortened(text: str, most: int = 300) -> str:
    """A text, on one line, cut where it is too long."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
