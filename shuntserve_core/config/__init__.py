"""Configuration: TOML into typed values, with errors that say what would be right."""

from shuntserve_core.config.build import estimator_from, optimizer_from, problem_from
from shuntserve_core.config.loader import Config, config_from_data, load_config
from shuntserve_core.config.mistakes import Mistakes

__all__ = [
    "Config",
    "Mistakes",
    "config_from_data",
    "estimator_from",
    "load_config",
    "optimizer_from",
    "problem_from",
]
