"""`python -m shuntserve_core.cli`: the command line, where the script is not on the path."""

from shuntserve_core.cli import main

main()
