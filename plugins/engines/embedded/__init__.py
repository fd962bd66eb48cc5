"""A small engine on PyTorch, whose results depend on nothing but the request.

* `engine`: what the node agents are to start; `worker`: the process of one rank
* `scheduler`: which tokens of which sequences go into a step; `plan`: a step, as ranks are told it
* `rank`: carries out steps; `stage`: the layers of a rank; `attention`: paged keys and values
* `arithmetic`: products in tiles of one shape; `weights`: matrices in logical shards
* `sampling`: from logits to a token; `group`, `control`: how ranks talk
"""
