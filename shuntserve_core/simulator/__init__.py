"""A discrete-event simulator of pipelines, at the granularity of engine steps.

* `profile`: how an engine schedules, with the source of every constant
* `tables`: what a step costs on every stage, tabulated from an estimator
* `microbatch`: one micro-batch's scheduler: continuous batching, KV blocks, preemption
* `pipeline`: stages that micro-batches go round
* `dispatch`: requests over pipelines, by the real balancers
* `events`: the clock
* `cluster`: nodes, interruptions, strategies and new pipelines
* `bill`: what the nodes cost
* `run`: a whole run, and `result` what it gave
"""
