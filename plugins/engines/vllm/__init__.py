"""vLLM, with a tensor-parallel degree for each stage, other people's memory, and exact resumption.

* `engine`: what the node agents are to start, and what is refused; `worker`: the process of a rank
* `peers`: how ranks hear each other, and notice that one has gone
* `driver`: requests in, vLLM's engine core, tokens out; `translate`: their words and ours
* `executor`: vLLM's executor over rank processes; `rank`: one of them; `configuration`: vLLM's
* `stage_worker`: vLLM's worker in a stage; `groups`: who talks to whom
* `lending`: weights and KV memory of the tensor store; `resumption`: tokens that are there already
* `symbols`: all of vLLM that the above leans on

Only `executor`, `rank`, `stage_worker`, `groups`, `lending`, `resumption`, `translate` and `driver`
import vLLM.
"""
