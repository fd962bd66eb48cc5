"""The core of shuntserve: types, hook specs, plugin registry, configuration, runtime, commands.

It imports no plugin, and names no cloud and no GPU.
"""

from shuntserve_core._version import __version__

__all__ = ["__version__"]
