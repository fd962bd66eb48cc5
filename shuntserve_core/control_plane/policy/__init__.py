"""What the cluster does about whatever happens: one pure function of a frozen view.

`decide` looks at a `View` and says what to do as values; the manager of a real cluster and the
simulator carry them out, each in its own way and without a rule of its own.  Nothing here knows a
clock, a process or a connection.

* `view`: nodes, pipelines, and what was decided before
* `actions`: what can be done
* `decide`: the rules in their order
* `notices`: what a word about a node changes
* `placing`: what runs in place of what is lost, and when a better placement is looked for
* `replacement`: the way of a replacement from its start to the end of what it replaces
* `planner`: which pipelines on which nodes; the only part that may take seconds
* `spares`, `backoff`, `strategy`: what the rules need to know
"""
