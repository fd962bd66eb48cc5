"""Chaos: streams under steady load while nodes are taken and processes are killed.

    python -m shuntserve_core.testing.chaos CONFIG --streams 1000

starts `shuntserve serve CONFIG`, records what every kind of request answers undisturbed, and then
demands the same, byte for byte, from each stream while it takes nodes with and without notice and
kills engines, tensor stores, agents and templates.  With `--minutes` it is a soak: compare the
`resources` of its report.

* `requests`: what is asked, in every class that must survive
* `client`: one stream, with the gaps that its client sees
* `cluster`: a running `shuntserve serve`, and what can be done to it
* `disturbances`: what happens to it, and when
* `campaign`: the load, mode by mode, and what the cluster takes of the machine
* `verdict`: what came of it
"""
