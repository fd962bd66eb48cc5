"""Every tensor of a checkpoint accounted for: of the shape that its config implies, or not needed.

What is cut wrongly serves nonsense without a word, so that anything else is refused before a byte
is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shuntserve_core.errors import UserError
from shuntserve_core.foreign import whole_number
from shuntserve_core.peculiar import PLAIN, head_size, quantised, unknown_to_all
from shuntserve_core.types.model import MOST_LAYERS, MOST_WIDTH
from shuntserve_core.weights.cutting import EMBEDDING, LM_HEAD
from shuntserve_core.weights.sources import CheckpointSource, SourceTensor
from shuntserve_core.weights.traw import V1_DTYPES

Shape = tuple[int, ...]
PLAIN_NUMBERS = frozenset(dtype.name for dtype in V1_DTYPES)
"""Element types that engines compute with."""
BUFFERS = re.compile(
    r"\.(inv_freq|position_ids|masked_bias|(attn|attention|self_attn)\.(bias|mask))$"
)
"""What old checkpoints saved of a module beside its weights: made anew by whoever needs it."""
_PACKED = re.compile(
    r"\.(qweight|qzeros|g_idx|weight_packed|weight_shape|scales|absmax|quant_map)$"
)
_SCALED = re.compile(r"\.(\w*scale\w*|weight_zero_point)$")
_LORA = re.compile(r"(^base_model\.|\.lora_[AB]\.)")
_COMPARED_ROWS = 4096


def expected_shapes(config: Mapping[str, Any], where: str) -> dict[str, Shape]:
    """The tensors that a config implies, with their shapes.

    Raises `UserError` for what the config lacks, and for what it names that nothing here knows.
    """
    reason = quantised(config)
    if reason:
        raise UserError(reason, where=where, remedy=PLAIN)
    if reason := unknown_to_all(config):
        raise UserError(
            f"{reason}, which no engine here computes",
            where=where,
            remedy="see docs/explanation/weights.md for what can be served",
        )
    layer = _layer_shapes(config, where)
    hidden = _count(config, "hidden_size", where)
    vocab = _count(config, "vocab_size", where)
    shapes: dict[str, Shape] = {EMBEDDING: (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings"):
        shapes[LM_HEAD] = (vocab, hidden)
    for number in range(_count(config, "num_hidden_layers", where, MOST_LAYERS)):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes


def _layer_shapes(config: Mapping[str, Any], where: str) -> dict[str, Shape]:
    family = config.get("model_type")
    hidden = _count(config, "hidden_size", where)
    wide = _count(config, "intermediate_size", where)
    heads = _count(config, "num_attention_heads", where)
    kv_heads = (
        heads
        if config.get("num_key_value_heads") is None
        else _count(config, "num_key_value_heads", where)
    )
    sized = {"head_dim": head_size(config, hidden, heads)}
    head = _count(sized, "head_dim", where)
    q, kv = heads * head, kv_heads * head
    matrices: dict[str, tuple[int, int]] = {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    biases = {"qwen2": "qkv"}.get(str(family), "qkvo" if config.get("attention_bias") else "")
    with_bias = [f"self_attn.{part}_proj" for part in biases]
    if config.get("mlp_bias"):
        with_bias += [name for name in matrices if name.startswith("mlp.")]
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if family == "qwen3":
        norms |= {"self_attn.q_norm": head, "self_attn.k_norm": head}
    return {
        **{f"{name}.weight": shape for name, shape in matrices.items()},
        **{f"{name}.bias": (matrices[name][0],) for name in with_bias},
        **{f"{name}.weight": (size,) for name, size in norms.items()},
    }


def _count(config: Mapping[str, Any], key: str, where: str, most: int = MOST_WIDTH) -> int:
    try:
        return whole_number(config.get(key), 1, most)
    except ValueError as error:
        raise UserError(
            str(error), where=f"{where}: {key}", remedy="correct it in config.json"
        ) from error


def account(source: CheckpointSource, config: Mapping[str, Any], where: str) -> list[SourceTensor]:
    """The tensors that are stored, in the checkpoint's order; what is not needed is left out.

    Raises `UserError` for a tensor that lacks, that has another shape than the config implies, that
    is not plain numbers, or that the config says nothing of.
    """
    expected = expected_shapes(config, f"{where}: config.json")
    unread = source.unread
    tensors = source.tensors
    names = {tensor.name for tensor in tensors} | set(unread)
    _refuse_other_kinds(sorted(names), where)
    if missing := sorted(expected.keys() - names):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"the checkpoint lacks {missing[0]}{more}", where=where, remedy=_remedy_for(missing[0])
        )
    _refuse_unread(expected, unread, where)
    for tensor in tensors:
        _check(tensor, expected.get(tensor.name), where)
    if LM_HEAD not in expected and any(tensor.name == LM_HEAD for tensor in tensors):
        _compare_tied(source, {tensor.name: tensor for tensor in tensors}, where)
    return [tensor for tensor in tensors if tensor.name in expected]


def _remedy_for(missing: str) -> str:
    if missing == LM_HEAD:
        return 'where the embedding table is used for both, give "tie_word_embeddings": true'
    return "download every file of the checkpoint again, with the config.json that belongs to it"


def _refuse_other_kinds(names: Sequence[str], where: str) -> None:
    for name in names:
        if _LORA.search(name):
            raise UserError(
                f"{name} is of a LoRA adapter, not of a model",
                where=where,
                remedy="merge it into its base model (peft: merge_and_unload) and push that",
            )
        if _PACKED.search(name):
            raise UserError(
                f"{name} is of a packed quantisation (AWQ, GPTQ or the like)",
                where=where,
                remedy=PLAIN,
            )


def _refuse_unread(expected: Mapping[str, Shape], unread: Mapping[str, str], where: str) -> None:
    for name, dtype in sorted(unread.items()):
        if name in expected or (_of_decoder(name) and not BUFFERS.search(name)):
            raise UserError(
                f"{name} is of type {dtype}, which is not plain numbers", where=where, remedy=PLAIN
            )


_DECODER = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")


def _of_decoder(name: str) -> bool:
    return name.startswith(_DECODER)


def _check(tensor: SourceTensor, expected: Shape | None, where: str) -> None:
    name, shape, dtype = tensor.name, tensor.header.shape, tensor.header.dtype.name
    if expected is None:
        if name == LM_HEAD or not _of_decoder(name) or BUFFERS.search(name):
            return
        if _SCALED.search(name):
            raise UserError(
                f"{name} is a scale of quantised weights that config.json does not name",
                where=where,
                remedy=PLAIN,
            )
        raise UserError(
            f"{name} is in the checkpoint, but config.json implies no such tensor",
            where=where,
            remedy="use the config.json that belongs to this checkpoint",
        )
    if dtype not in PLAIN_NUMBERS:
        raise UserError(f"{name} is of type {dtype}: quantised weights", where=where, remedy=PLAIN)
    if shape != expected:
        raise UserError(
            f"{name} is {list(shape)}, but config.json implies {list(expected)}",
            where=where,
            remedy="use the config.json that belongs to this checkpoint",
        )


def _compare_tied(
    source: CheckpointSource, tensors: Mapping[str, SourceTensor], where: str
) -> None:
    """A tied model's own output projection must be the table that is used in its place."""
    head, table = tensors[LM_HEAD].header, tensors[EMBEDDING].header
    if head != table:
        said = f"{head.dtype.name} {list(head.shape)}, not {table.dtype.name} {list(table.shape)}"
    else:
        one, other = source.read(LM_HEAD), source.read(EMBEDDING)
        rows = sum(
            int(
                np.count_nonzero(
                    (one[at : at + _COMPARED_ROWS] != other[at : at + _COMPARED_ROWS]).any(axis=1)
                )
            )
            for at in range(0, len(one), _COMPARED_ROWS)
        )
        if not rows:
            return
        said = f"different in {rows} of {len(one)} rows"
    raise UserError(
        f"tie_word_embeddings is true, but {LM_HEAD} is not {EMBEDDING}: {said}",
        where=where,
        remedy='set "tie_word_embeddings": false in config.json to use it, or take it out',
    )
