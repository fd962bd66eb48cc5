"""What nodes import once for all ranks; see `shuntserve_core.interfaces.engine.Template`.

Also a rehearsal: libraries set themselves up at first use, and memory that is written to before
the fork is shared by all ranks.
"""

from __future__ import annotations

import cattrs
import torch

from shuntserve_plugins.engines.embedded.engine import WorkerSpec
from shuntserve_plugins.engines.embedded.geometry import Geometry, Rope
from shuntserve_plugins.engines.embedded.group import Alone
from shuntserve_plugins.engines.embedded.process import RankProcess
from shuntserve_plugins.engines.embedded.rank import Rank
from shuntserve_plugins.engines.embedded.stage import Stage
from shuntserve_plugins.engines.embedded.worker import main

__all__ = ["RankProcess", "main"]

_SMALL = Geometry(
    family="llama",
    layers=1,
    hidden=8,
    heads=1,
    kv_heads=1,
    head_dim=8,
    intermediate=8,
    vocab=8,
    epsilon=1e-5,
    tied=True,
    rope=Rope(10000.0),
)


class _Nobody:
    """The stages before and after a stage that is the whole model."""

    def receive(self, rows: int) -> torch.Tensor:
        raise NotImplementedError

    def send(self, hidden: torch.Tensor) -> None:
        raise NotImplementedError


def _rehearse() -> None:
    torch.set_num_threads(1)  # no library may start threads before the fork
    cattrs.get_structure_hook(WorkerSpec)
    tensors = {f"model.{name}.weight": torch.zeros(8, 8).half() for name in ("embed_tokens",)}
    tensors["model.norm.weight"] = torch.zeros(8).half()
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"model.layers.0.{name}.weight"] = torch.zeros(8).half()
    for name in ("q", "k", "v", "o"):
        tensors[f"model.layers.0.self_attn.{name}_proj.weight"] = torch.zeros(8, 8).half()
    for name in ("gate", "up", "down"):
        tensors[f"model.layers.0.mlp.{name}_proj.weight"] = torch.zeros(8, 8).half()
    stage = Stage(_SMALL, tensors, range(1), Alone(), 64)
    Rank(stage, _Nobody(), samples=True).warm_up()


_rehearse()
