"""The core of shuntserve: types, hook specs, plugin registry, configuration, runtime, commands.

It imports no plugin, and names no cloud and no GPU.  Programs and notebooks find what they need
here, under the names of `shuntserve_core.public`; it is imported when a name is first used.
"""

from typing import TYPE_CHECKING, Any

from shuntserve_core._version import __version__

if TYPE_CHECKING:
    from shuntserve_core.public import Registry, estimate, load_config, plan, serve, simulate

__all__ = ["Registry", "__version__", "estimate", "load_config", "plan", "serve", "simulate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from shuntserve_core import public

    return getattr(public, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
