"""`python -m shuntserve_core.cli`: the command line without its script."""

from shuntserve_core.cli import main

main()
