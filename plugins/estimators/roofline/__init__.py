"""`roofline`, the default estimator: profiling-free, without the published model's slips.

docs/explanation/roofline.md explains it and says how far from measurements it is.
"""

from shuntserve_plugins.estimators.roofline.options import Roofline

__all__ = ["Roofline"]
