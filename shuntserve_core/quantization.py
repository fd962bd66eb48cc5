"""What a checkpoint says of quantised weights, in each of the forms that its makers write.

`config.json` has `quantization_config` (transformers) or `compression_config` (older
compressed-tensors); NVIDIA's Model Optimizer writes `hf_quant_config.json` beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from attrs import frozen

from shuntserve_core.errors import UserError
from shuntserve_core.foreign import parse_json, read_bytes

HF_QUANT_CONFIG = "hf_quant_config.json"
KEYS = ("quantization_config", "compression_config", "quantization")
_LEFT = (
    "ignore",
    "modules_to_not_convert",
    "ignored_layers",
    "exclude_modules",
    "llm_int8_skip_modules",
)
"""Where makers list the modules that they left as they were."""
_SCALE_BYTES = 2.0
"""Of one scale: float16 or bfloat16."""
_MOST_COMPARISONS = 4_000_000
_SAFE_PATTERN = re.compile(r"[\w.*+$^\\|()?:-]{1,200}")
_PROJECTIONS = (
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
)


@frozen
class Quantization:
    """How the weights of a checkpoint are stored."""

    method: str
    """As its maker calls it: `fp8`, `awq`, `compressed-tensors`, ..."""
    weight_dtype: str | None
    """`fp8`, `int8` or `int4`, the widest where they differ; None where it is not known."""
    scale_bytes: float = 0.0
    """Of scales, for each weight: what they take divided by the weights that share one."""
    left: tuple[str, ...] = ()
    """Names, or patterns of names, of modules that are not quantised."""


def read_config(folder: str | Path) -> dict[str, Any]:
    """`config.json` of a model directory with what is beside it; empty where there is none.

    Raises `UserError` for a file that is not one.
    """
    file = Path(folder) / "config.json"
    if not folder or not file.is_file():
        return {}
    try:
        config = parse_json(read_bytes(file))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot be read: {error}", where=str(file), remedy="download it again, or remove it"
        ) from error
    if not isinstance(config, dict):
        raise UserError("holds no JSON object", where=str(file), remedy="download it again")
    return with_companions(config, file.parent)


def with_companions(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`config`, with the quantisation in it that a file beside it tells of.

    Raises `UserError` for a file that cannot be read.
    """
    file = folder / HF_QUANT_CONFIG
    if described(config) is not None or not file.is_file():
        return dict(config)
    try:
        beside = parse_json(read_bytes(file))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot be read: {error}", where=str(file), remedy="download it again, or remove it"
        ) from error
    return merged_with(config, beside)


def merged_with(config: Mapping[str, Any], beside: object) -> dict[str, Any]:
    """`config`, with what the document `hf_quant_config.json` says where it says nothing itself."""
    if described(config) is not None or not isinstance(beside, Mapping):
        return dict(config)
    producer = beside.get("producer")
    maker = producer.get("name") if isinstance(producer, Mapping) else None
    said = beside.get("quantization", beside)
    said = said if isinstance(said, Mapping) else {}
    return {**config, "quantization_config": {"quant_method": maker or "modelopt", **said}}


def described(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The part of a configuration that describes quantised weights, or None."""
    for key in KEYS:
        found = config.get(key)
        if found:
            return found if isinstance(found, Mapping) else {"quant_method": str(found)}
    return None


def method_of(config: Mapping[str, Any]) -> str:
    """What the checkpoint's quantisation is called; empty where it has none."""
    said = described(config)
    if said is None:
        return ""
    name = said.get("quant_method") or said.get("quant_algo") or said.get("format")
    if not name and isinstance(said.get("config_groups"), Mapping):
        name = "compressed-tensors"
    return str(name or "without a name")[:40]


def quantization_of(config: Mapping[str, Any]) -> Quantization | None:
    """How weights are stored, from the content of a `config.json`; None where they are plain.

    Formats: the `quantization_config` of transformers 5 and compressed-tensors 0.13, and what
    NVIDIA's Model Optimizer 0.39 writes.
    """
    said = described(config)
    if said is None:
        return None
    kinds = [_kind(part) for part in _parts(said)]
    dtypes = [dtype for dtype, _ in kinds]
    widest = max(dtypes, key=_WIDTH.__getitem__) if dtypes and None not in dtypes else None
    scales = max((scale for _, scale in kinds), default=0.0)
    return Quantization(method_of(config), widest, scales, tuple(_left(said)))


_WIDTH: Mapping[str | None, int] = {"int4": 4, "int8": 8, "fp8": 8}


def _parts(said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The schemes of `config_groups`, or the one that there is."""
    groups = said.get("config_groups")
    if not isinstance(groups, Mapping):
        return [said]
    schemes = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
    return [scheme for scheme in schemes if isinstance(scheme, Mapping)]


def _kind(part: Mapping[str, Any]) -> tuple[str | None, float]:
    """Element type and bytes of scales for each weight, of one scheme."""
    dtype = _element(part)
    if dtype is None:
        return None, 0.0
    words = f"{part.get('quant_method')} {part.get('quant_algo')}".lower()
    block = part.get("weight_block_size") or part.get("block_structure")
    if isinstance(block, list) and len(block) == 2 and all(map(_is_size, block)):
        return dtype, 4.0 / (block[0] * block[1])
    group = next(
        (part[key] for key in ("group_size", "q_group_size") if _is_size(part.get(key))), 0
    )
    if "fp4" in words and "nf4" not in words:  # scales of one byte: of 16 weights, or of 32
        return dtype, 1.0 / (group or (32 if "mxfp4" in words else 16))
    if part.get("load_in_4bit"):
        return dtype, 4.0 / 64
    if not group:
        return dtype, 0.0  # one scale a row, or a tensor: less than a thousandth
    zeros = 0.5 if part.get("zero_point") or part.get("sym") is False else 0.0
    return dtype, (_SCALE_BYTES + zeros) / group


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 20


def _element(part: Mapping[str, Any]) -> str | None:
    keys = ("bits", "w_bit", "num_bits", "nbits")
    bits = next((part[key] for key in keys if isinstance(part.get(key), int)), None)
    if part.get("load_in_4bit"):
        bits = 4
    if part.get("load_in_8bit"):
        bits = 8
    if bits is not None:
        floating = str(part.get("type")).lower() in ("float", "fp")
        return {4: "int4", 8: "fp8" if floating else "int8"}.get(bits)
    words = [str(part.get(key) or "").lower() for key in ("quant_algo", "weights", "quant_method")]
    for word in words:
        if "fp4" in word or "w4" in word or word == "int4":
            return "int4"
        if "fp8" in word or word.startswith("float8"):
            return "fp8"
        if word == "int8" or "w8a8" in word:
            return "int8"
    return None


def _left(said: Mapping[str, Any]) -> Iterable[str]:
    for key in _LEFT:
        names = said.get(key)
        if isinstance(names, list):
            yield from (name for name in names if isinstance(name, str))
    dynamic = said.get("dynamic")  # GPTQModel: "-:" before a pattern takes modules out
    if isinstance(dynamic, Mapping):
        yield from (f"re:{name[2:]}" for name in dynamic if str(name).startswith("-:"))


def part_left(left: Iterable[str], layers: int, sizes: Mapping[str, int]) -> float:
    """Part of all layers' weights that are not quantised, 0 to 1.

    `sizes` are the elements of each projection of one layer (`self_attn.q_proj`, ...).  Raises
    `UserError` for lists that are too long to make sense.
    """
    patterns = [pattern for pattern in set(left) if "lm_head" not in pattern]
    if len(patterns) * layers * len(sizes) > _MOST_COMPARISONS * 10:
        raise UserError(f"{len(patterns)} modules left unquantised make no sense")
    if not patterns or not (total := sum(sizes.values()) * layers):
        return 0.0
    found = sum(
        size
        for layer in range(layers)
        for name, size in sizes.items()
        if any(_matches(pattern, f"model.layers.{layer}.{name}") for pattern in patterns)
    )
    return found / total


def _matches(pattern: str, module: str) -> bool:
    """Whether a module is meant by an entry: a part of its name, a wildcard, or `re:` and more."""
    if pattern.startswith("re:"):
        expression = pattern[3:]
        # A file's own expression must not take for ever: no repeated groups, and few repetitions.
        risky = re.search(r"\)[*+?{]", expression) or len(re.findall(r"[*+]", expression)) > 3
        if risky or not _SAFE_PATTERN.fullmatch(expression):
            return True  # rather too many bytes than too few
        try:
            return re.match(expression, module) is not None
        except re.error:
            return True
    if "*" in pattern:
        return fnmatchcase(module, pattern)
    return f".{pattern.strip('.')}." in f".{module}."


def projections(hidden: int, q_size: int, kv_size: int, intermediate: int) -> dict[str, int]:
    """Elements of each projection of a layer, by its name in a checkpoint."""
    outputs = (q_size, kv_size, kv_size, q_size, intermediate, intermediate, intermediate)
    return {name: hidden * width for name, width in zip(_PROJECTIONS, outputs, strict=True)}
