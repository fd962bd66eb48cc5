"""What nodes import once for all ranks; see `shuntserve_core.interfaces.engine.Template`.

Libraries set much up at their first use.  A small model is computed here once, so that ranks find
that done, in memory which they share.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  what the first connection looks a host up with

import torch

from shuntserve_plugins.engines.embedded import process
from shuntserve_plugins.engines.embedded.geometry import Geometry, Rope
from shuntserve_plugins.engines.embedded.group import Alone
from shuntserve_plugins.engines.embedded.mesh import Pipe
from shuntserve_plugins.engines.embedded.rank import Rank
from shuntserve_plugins.engines.embedded.stage import Stage
from shuntserve_plugins.engines.embedded.worker import main

__all__ = ["main", "process"]

_SMALL = Geometry(
    family="llama",
    layers=1,
    hidden=256,
    heads=4,
    kv_heads=1,
    head_dim=64,
    intermediate=512,
    vocab=1024,
    epsilon=1e-5,
    tied=True,
    rope=Rope(10000.0),
)


def rehearse(g: Geometry) -> None:
    """Compute one step of a model of zeros.  Starts no threads, which forks would lose."""
    torch.set_num_threads(1)
    attention, mlp = g.heads * g.head_dim, g.intermediate
    shapes = {
        "self_attn.q_proj.weight": (attention, g.hidden),
        "self_attn.k_proj.weight": (g.kv_heads * g.head_dim, g.hidden),
        "self_attn.v_proj.weight": (g.kv_heads * g.head_dim, g.hidden),
        "self_attn.o_proj.weight": (g.hidden, attention),
        "mlp.gate_proj.weight": (mlp, g.hidden),
        "mlp.up_proj.weight": (mlp, g.hidden),
        "mlp.down_proj.weight": (g.hidden, mlp),
        "input_layernorm.weight": (g.hidden,),
        "post_attention_layernorm.weight": (g.hidden,),
    }
    whole = {f"model.layers.0.{name}": shape for name, shape in shapes.items()}
    whole |= {"model.embed_tokens.weight": (g.vocab, g.hidden), "model.norm.weight": (g.hidden,)}
    tensors = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in whole.items()}
    stage = Stage(g, tensors, range(1), Alone(), max_length=64)
    Rank(stage, Pipe(None, [], g.hidden), samples=True).warm_up()


rehearse(_SMALL)
