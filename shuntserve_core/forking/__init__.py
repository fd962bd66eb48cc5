"""Workers forked from a process that has imported everything already; Linux only.

Importing a big library takes seconds, and memory that is never written to again.  A template
process does it once; workers forked from it start at once and share that memory.

* `shuntserve_core.forking.templates`: the node agent's end.
* `python -m shuntserve_core.forking`: the template process, and how a worker leaves it.
* `shuntserve_core.forking.process`: a forked worker, as asyncio would show it.

A worker is forked twice, and the process in between ends: so the agent becomes its parent.  It
reaps the worker, and the kernel kills the worker with the agent, as if the agent had started it.
When a template dies its workers live on.
"""
