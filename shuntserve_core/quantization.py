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
from shuntserve_core.types.dtypes import dtype_bytes

HF_QUANT_CONFIG = "hf_quant_config.json"
EVERY = "Linear"
"""The class of all projections."""
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
class Scheme:
    """How the weights of some modules are stored."""

    dtype: str | None
    """`fp8`, `int8` or `int4`; None where it is not known."""
    scale_bytes: float = 0.0
    """Of scales and zero points, for each weight: divided by the weights that share one."""
    targets: tuple[str, ...] = (EVERY,)
    """Names, patterns of names, or the class of modules."""


@frozen
class Quantization:
    """How the weights of a checkpoint are stored."""

    method: str
    """As its maker calls it: `fp8`, `awq`, `compressed-tensors`, ..."""
    schemes: tuple[Scheme, ...]
    """The first that a module is a target of is its own; others are not quantised."""
    left: tuple[str, ...] = ()
    """Names, or patterns of names, of modules that are not quantised."""

    @property
    def weight_dtype(self) -> str | None:
        """The widest of them; None where one is not known."""
        dtypes = [scheme.dtype for scheme in self.schemes]
        known = [dtype for dtype in dtypes if dtype is not None]
        return max(known, key=_WIDTH.__getitem__) if known and len(known) == len(dtypes) else None


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
    return Quantization(method_of(config), tuple(_schemes(said)), tuple(_left(said)))


_WIDTH: Mapping[str, int] = {"int4": 4, "int8": 8, "fp8": 8}


def _schemes(said: Mapping[str, Any]) -> Iterable[Scheme]:
    """Those of `config_groups`, of `quantized_layers`, or the one that there is."""
    groups, layers = said.get("config_groups"), said.get("quantized_layers")
    if isinstance(groups, Mapping):
        for group in groups.values():
            part = group.get("weights") if isinstance(group, Mapping) else None
            if isinstance(part, Mapping):
                yield Scheme(*_kind(part), targets=_targets(group.get("targets")))
    elif isinstance(layers, Mapping) and layers:
        for name, part in layers.items():
            if isinstance(part, Mapping):
                yield Scheme(*_kind(part), targets=(str(name),))
    else:
        yield Scheme(*_kind(said))


def _targets(said: object) -> tuple[str, ...]:
    names = said if isinstance(said, list) and said else [EVERY]
    return tuple(name for name in names if isinstance(name, str))


def _kind(part: Mapping[str, Any]) -> tuple[str | None, float]:
    """Element type and bytes of scales for each weight, of one scheme."""
    dtype = _element(part)
    if dtype is None:
        return None, 0.0
    words = f"{part.get('quant_method')} {part.get('quant_algo')} {part.get('fmt')}".lower()
    four = dtype == "int4" and str(part.get("type")).lower() in ("float", "fp")
    block = part.get("weight_block_size") or part.get("block_structure")
    if isinstance(block, list) and len(block) == 2 and all(map(_is_size, block)):
        return dtype, 4.0 / (block[0] * block[1])
    group = next(
        (part[key] for key in ("group_size", "q_group_size") if _is_size(part.get(key))), 0
    )
    if four or (
        "fp4" in words and "nf4" not in words
    ):  # scales of one byte: of 16 weights, or of 32
        return dtype, 1.0 / (group or (32 if "mxfp4" in words else 16))
    if part.get("load_in_4bit"):  # one float32 of 64 weights, or a byte and one float32 of 256 such
        double = part.get("bnb_4bit_use_double_quant")
        return dtype, (1.0 + 4.0 / 256) / 64 if double else 4.0 / 64
    if not group:
        return dtype, 0.0  # one scale a row, or a tensor: less than a thousandth
    # AWQ and GPTQ store zero points of symmetric weights too.
    packed = any(word in words for word in ("awq", "gptq")) or part.get("zero_point")
    zeros = packed or part.get("sym") is False or part.get("symmetric") is False
    return dtype, (_SCALE_BYTES + (_WIDTH[dtype] / 8 if zeros else 0.0)) / group


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


def bytes_by_layer(
    found: Quantization, layers: int, sizes: Mapping[str, int], plain: float
) -> tuple[float, ...]:
    """Bytes of one weight with its part of a scale, an average for each layer.

    `sizes` are the elements of each projection of one layer (`self_attn.q_proj`, ...), `plain` the
    bytes of a weight that is not quantised.  Raises `UserError` for lists that are too long to make
    sense.
    """
    left = [pattern for pattern in dict.fromkeys(found.left) if "lm_head" not in pattern]
    patterns = len(left) + sum(len(scheme.targets) for scheme in found.schemes)
    if patterns * layers * len(sizes) > _MOST_COMPARISONS * 10:
        raise UserError(
            f"{patterns} modules that are quantised, or are not, make no sense",
            remedy="download config.json again",
        )
    total = sum(sizes.values())

    def of(module: str) -> float:
        if any(_matches(pattern, module) for pattern in left):
            return plain
        for scheme in found.schemes:
            if any(target == EVERY or _matches(target, module) for target in scheme.targets):
                return dtype_bytes(scheme.dtype) + scheme.scale_bytes if scheme.dtype else plain
        return plain

    return tuple(
        sum(size * of(f"model.layers.{layer}.{name}") for name, size in sizes.items()) / total
        for layer in range(layers)
    )


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
