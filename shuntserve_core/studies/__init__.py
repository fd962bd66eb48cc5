"""Studies: placements, strategies, workloads and traces against each other, and a report.

* `study`: the TOML file
* `cells`: what is to be run, and one run
* `runner`: all of them, in parallel, resumable
* `figures` and `report`: what a person reads; `tables` for programs
"""
