"""Maps the folder `plugins/` to the package `shuntserve_plugins`, with all that lies below it.

Setuptools finds packages below the names that they are imported by; the folder has another name,
so its sub-packages are listed here. Everything else is in pyproject.toml.
"""

from setuptools import find_packages, setup

bundled = ["shuntserve_plugins", *(f"shuntserve_plugins.{p}" for p in find_packages("plugins"))]
setup(
    packages=[*find_packages(include=["shuntserve_core", "shuntserve_core.*"]), *bundled],
    package_dir={"shuntserve_plugins": "plugins"},
    package_data={"": ["py.typed", "*.json", "*.toml", "*.html", "*.css", "*.jinja", "*.csv"]},
)
