"""Sphinx: MyST pages, the reference generated from the code (see _ext/generated.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "shuntserve"
author = "The shuntserve authors"
extensions = ["myst_parser", "generated"]
html_theme = "furo"
html_title = "shuntserve"
exclude_patterns = ["_build", "reference/generated"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nitpicky = True
