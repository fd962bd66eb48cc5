"""Every tensor is where the engine computes: found without a GPU, by a device that stands in.

Tensors of the device `meta` have shapes and no data.  PyTorch lets some operations mix them with
tensors in host memory; here that is an error, as it would be between a GPU and its host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shuntserve_core.types.request import SamplingParams
from shuntserve_plugins.engines.embedded.arithmetic import means_by_tiles
from shuntserve_plugins.engines.embedded.geometry import Geometry, Rope
from shuntserve_plugins.engines.embedded.group import Alone
from shuntserve_plugins.engines.embedded.mesh import Pipe
from shuntserve_plugins.engines.embedded.plan import Choice, Newcomer, Part, Plan
from shuntserve_plugins.engines.embedded.rank import Rank, cache_of
from shuntserve_plugins.engines.embedded.stage import Stage

STAND_IN = torch.device("meta")
_COPIES = {torch.ops.aten._to_copy, torch.ops.aten.to, torch.ops.aten.copy_}
_NUMBERS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.item}
GEOMETRY = Geometry(
    family="qwen3",
    layers=2,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate=96,
    vocab=1500,
    epsilon=1e-5,
    tied=True,
    rope=Rope(10000.0),
)


class Mixed(AssertionError):
    """Tensors of two devices met in an operation."""


class StandIn(TorchDispatchMode):
    """Lets data through in copies alone, and zeros come out of the device that has none."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        devices = {tensor.device for tensor in tensors if tensor.dim()}
        if func.overloadpacket in _NUMBERS and args[0].device == STAND_IN:
            return 0.0
        copies = func.overloadpacket in _COPIES
        if copies and (room := _room(func, args, kwargs or {})) is not None:
            return room
        if len(devices) > 1 and not copies:
            raise Mixed(f"{func}: {[(tensor.device, tuple(tensor.shape)) for tensor in tensors]}")
        return func(*args, **(kwargs or {}))


def _room(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Zeros on the host, if that is where it copies to from the device."""
    source: Tensor = args[0]
    if func.overloadpacket is torch.ops.aten.copy_:
        into: Tensor = args[0]
        return into.zero_() if args[1].device == STAND_IN != into.device else None
    named = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.device)]
    if source.device != STAND_IN or not named or named[0] == STAND_IN:
        return None
    return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)


def weights(g: Geometry) -> dict[str, Tensor]:
    """Of all layers, without data."""
    attention, kv = g.heads * g.head_dim, g.kv_heads * g.head_dim
    layer = {
        "self_attn.q_proj.weight": (attention, g.hidden),
        "self_attn.k_proj.weight": (kv, g.hidden),
        "self_attn.v_proj.weight": (kv, g.hidden),
        "self_attn.o_proj.weight": (g.hidden, attention),
        "self_attn.q_norm.weight": (g.head_dim,),
        "self_attn.k_norm.weight": (g.head_dim,),
        "mlp.gate_proj.weight": (g.intermediate, g.hidden),
        "mlp.up_proj.weight": (g.intermediate, g.hidden),
        "mlp.down_proj.weight": (g.hidden, g.intermediate),
        "input_layernorm.weight": (g.hidden,),
        "post_attention_layernorm.weight": (g.hidden,),
    }
    shapes = {f"model.layers.{i}.{name}": s for i in range(g.layers) for name, s in layer.items()}
    shapes |= {"model.embed_tokens.weight": (g.vocab, g.hidden), "model.norm.weight": (g.hidden,)}
    return {n: torch.empty(s, dtype=torch.bfloat16, device=STAND_IN) for n, s in shapes.items()}


def samplings() -> Iterator[SamplingParams]:
    """One of every kind."""
    plain = SamplingParams(max_tokens=9, temperature=0.0, logprobs=3)
    yield plain
    yield evolve(plain, temperature=0.8, top_p=0.9, top_k=40, min_p=0.1)
    yield evolve(plain, temperature=1.0, presence_penalty=1.0, repetition_penalty=1.2)
    yield evolve(plain, logit_bias={3: 1.0}, min_tokens=5, stop_token_ids=(7,))


def step_of(rank: Rank) -> list[Choice]:
    """A step with chunks of prompts, a whole one, and tokens that follow others."""
    newcomers = [Newcomer(i, (4, 5), (6,), s) for i, s in enumerate(samplings())]
    parts = [Part(n.number, (1,) * 19, 14, (0, 1, 2), sample=True) for n in newcomers]
    parts.append(Part(9, (1, 2, 3), 5, (3,), sample=False))
    return rank.step(Plan(tuple(parts), tuple(newcomers)))


@pytest.fixture
def stand_in() -> Iterator[None]:
    with StandIn():
        yield


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("layers", [range(2), range(1), range(1, 2)], ids=["both", "first", "last"])
def test_a_step_mixes_no_devices(layers: range) -> None:
    sent: list[Tensor] = []

    class Neighbours(Pipe):
        def receive(self, rows: int) -> Tensor:
            return torch.zeros(rows, GEOMETRY.hidden).to(self._device)

        def send(self, hidden: Tensor) -> None:
            sent.append(hidden)

    stage = Stage(GEOMETRY, weights(GEOMETRY), layers, Alone(), max_length=128)
    neighbours = Neighbours(None, [], GEOMETRY.hidden, STAND_IN)
    rank = Rank(stage, neighbours, samples=stage.last)
    rank.warm_up()
    rank.cache = cache_of(stage, 8)
    choices = step_of(rank)
    assert stage.device == STAND_IN
    assert len(choices) == (4 if stage.last else 0)
    assert {hidden.device for hidden in sent} == (set() if stage.last else {STAND_IN})


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    "mixing",
    [
        lambda here, there: here + there,
        torch.mm,
        lambda here, there: there[here[0].long()],
        lambda here, there: torch.stack([here, there]),
        lambda here, there: torch.index_select(there, 0, here[0].long()),
    ],
)
def test_the_stand_in_refuses_a_forgotten_device(
    mixing: Callable[[Tensor, Tensor], Tensor],
) -> None:
    with pytest.raises(Mixed):
        mixing(torch.zeros(3, 3), torch.zeros(3, 3, device=STAND_IN))


@pytest.mark.parametrize("shape", [(1, 64), (13, 64), (3, 5, 2, 16)])
def test_norms_by_tiles_are_norms(shape: tuple[int, ...]) -> None:
    """As a GPU computes them, with any number of rows."""
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(means_by_tiles(rows), rows.mean(-1, keepdim=True), atol=1e-6)
    alone = torch.stack([means_by_tiles(row[None])[0] for row in rows.view(-1, shape[-1])])
    assert torch.equal(means_by_tiles(rows).view(-1, 1), alone)
