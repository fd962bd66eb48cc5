"""vLLM, with a tensor-parallel degree for each stage, other people's memory, and exact resumption.

* `engine`: what the node agents are to start, and what is refused; `worker`: the process of a rank
* `template`: what is imported once for all ranks of a node
* `control`: how ranks hear each other, and notice that one has gone; `payload`: what they say, as
  data; `plain`: the same for what vLLM and torch say
* `server`: the link's end; `driver`: requests in, vLLM's engine core, tokens out; `translate`:
  their words and ours
* `executor`: vLLM's executor over rank processes; `rank`: one of them; `configuration`: vLLM's
* `stage_worker`: vLLM's worker in a stage; `groups`: who talks to whom
* `lending`: weights and KV memory of the tensor store; `resumption`: tokens that are there already
* `sampling`: random choices by seed and position
* `symbols`: all of vLLM that the above leans on, and which versions have it; `doctor`: whether it
  would run

`engine`, `worker`, `control`, `server`, `symbols` and `doctor` import nothing of vLLM.
"""
