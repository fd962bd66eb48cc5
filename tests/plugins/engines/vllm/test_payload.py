"""Calls and answers of vLLM's ranks: they arrive as they were sent, and can be data only."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

# vLLM warns of its own code while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

payload: Any = pytest.importorskip("shuntserve_plugins.engines.vllm.payload")

from vllm.sampling_params import (  # noqa: E402
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)
from vllm.v1 import kv_cache_interface as kv  # noqa: E402
from vllm.v1 import outputs  # noqa: E402
from vllm.v1.core.sched.output import (  # noqa: E402
    CachedRequestData,
    GrammarOutput,
    NewRequestData,
    ScheduledEncoderInputStats,
    SchedulerOutput,
)

from shuntserve_plugins.engines.vllm.lending import Taken  # noqa: E402

tokens = st.lists(st.integers(0, 200_000), max_size=5)
blocks = st.tuples(tokens)
names = st.text("0123456789", min_size=1, max_size=4)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=12,
)
tensors = st.tuples(
    st.sampled_from(["float32", "bfloat16", "int64", "uint8", "bool", "float8_e4m3fn"]),
    st.lists(st.integers(0, 3), max_size=3),
).map(lambda of: torch.ones(of[1]).to(getattr(torch, of[0])))
arrays = st.tuples(
    st.sampled_from(["<f4", "<i4", "|b1", ">u2", "<f8"]), st.lists(st.integers(0, 3), max_size=3)
).map(lambda of: np.ones(of[1], np.dtype(of[0])))
leaves = (
    plain
    | st.frozensets(st.integers(0, 99), max_size=3)
    | st.sets(st.text(max_size=3), max_size=3)
    | st.sampled_from([torch.bfloat16, torch.float8_e5m2, kv.KVQuantMode.NONE])
    | st.sampled_from([RequestOutputKind.DELTA, kv.KVCacheGroupRole.DEFAULT])
    | st.builds(torch.Size, st.lists(st.integers(0, 9), max_size=3))
    | st.fractions(max_denominator=999, min_value=-999, max_value=999)
)
sampling = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2),
    top_k=st.integers(0, 50),
    max_tokens=st.integers(1, 99),
    stop_token_ids=tokens,
    logit_bias=st.none() | st.dictionaries(st.integers(0, 99), st.floats(-9, 9), max_size=3),
    structured_outputs=st.none() | st.builds(StructuredOutputsParams, regex=st.text(min_size=1)),
    extra_args=st.fixed_dictionaries({"seed": st.integers(0, 2**63), "output": tokens}),
)
new = st.builds(
    NewRequestData,
    names,
    tokens,
    st.just([]),
    sampling,
    st.none(),
    blocks,
    st.integers(0, 999),
    st.none(),
)


@st.composite
def steps(draw: Callable[..., Any]) -> SchedulerOutput:
    ids = draw(st.lists(names, unique=True, max_size=4))
    step = SchedulerOutput.make_empty()
    step.scheduled_new_reqs = draw(st.lists(new, max_size=2))
    step.scheduled_cached_reqs = CachedRequestData(
        ids,
        set(ids[:1]),
        [[7]] * len(ids),
        {number: [1, 2] for number in ids},
        draw(st.lists(st.none() | blocks, min_size=len(ids), max_size=len(ids))),
        draw(st.lists(st.integers(0, 999), min_size=len(ids), max_size=len(ids))),
        [3] * len(ids),
    )
    step.num_scheduled_tokens = dict.fromkeys(ids, 1)
    step.total_num_scheduled_tokens = len(ids)
    step.finished_req_ids = draw(st.sets(names, max_size=3))
    step.preempted_req_ids = draw(st.none() | st.sets(names, max_size=3))
    step.scheduled_encoder_input_stats = ScheduledEncoderInputStats(1, 2)
    return step


@given(plain | leaves | st.lists(leaves, max_size=3) | sampling | steps())
@settings(max_examples=150, deadline=None)
def test_it_arrives_as_it_was_sent(value: Any) -> None:
    """With its very type, all the way down."""
    there = payload.unpacked(payload.packed(value))
    assert same(there, value), there


@given(st.lists(tensors | arrays, max_size=3))
@settings(max_examples=80, deadline=None)
def test_tensors_and_arrays_arrive_with_type_and_shape(values: list[Any]) -> None:
    there = payload.unpacked(payload.packed(values))
    assert same(there, values), there
    for one in there:
        one[...] = 0  # whoever gets it may write to it


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        raw = [tensor.reshape(-1).view(torch.uint8) for tensor in (one, other) if tensor.numel()]
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and (not raw or torch.equal(*raw))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other) and one.shape == other.shape
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    fields = payload._FIELDS.get(type(one).__name__)
    if fields:
        return all(same(getattr(one, name), getattr(other, name)) for name in fields)
    return bool(one == other)


def spec(**changes: Any) -> kv.FullAttentionSpec:
    return kv.FullAttentionSpec(
        block_size=32, num_kv_heads=2, head_size=64, dtype=torch.bfloat16, **changes
    )


WINDOW = kv.SlidingWindowSpec(
    block_size=16, num_kv_heads=1, head_size=8, dtype=torch.float16, sliding_window=128
)
KINDS = {
    "specs": {"layers.0": spec(), "layers.1": spec(sliding_window=9), "layers.2": WINDOW},
    "part of a token": spec(tokens_per_state=Fraction(1, 4)),
    "layout": kv.KVCacheConfig(
        num_blocks=9,
        kv_cache_tensors=[kv.KVCacheTensor(64, ["layers.0"], 8, 8)],
        kv_cache_groups=[
            kv.KVCacheGroupSpec(["layers.0"], spec()),
            kv.KVCacheGroupSpec(["layers.1"], kv.UniformTypeKVCacheSpecs(16, {"layers.1": spec()})),
        ],
        kv_cache_layout="LBHNC",
    ),
    "grammar": GrammarOutput(["1", "2"], np.full((2, 4), -1, np.int32)),
    "output": outputs.ModelRunnerOutput(
        req_ids=["1"],
        req_id_to_index={"1": 0},
        sampled_token_ids=[[5]],
        logprobs=outputs.LogprobsLists(
            np.array([[1, 2]], np.int32), np.array([[-0.5, -1.0]], np.float32), np.array([3])
        ),
        prompt_logprobs_dict={
            "1": outputs.LogprobsTensors(torch.ones(2, 3).int(), torch.ones(2, 3), torch.ones(2)),
            "2": None,
        },
    ),
    "repetition": RepetitionDetectionParams(3, 1, 2),
    "times": payload.CompilationTimes(1.5, 0.0),
    "taken": Taken(0.5, 0.25),
    "described": payload.TensorMetadata("cpu", torch.bfloat16, torch.Size([2, 3])),
    "number of numpy": np.float32(0.5),
}


@pytest.mark.parametrize("value", KINDS.values(), ids=KINDS.keys())
def test_kinds_that_ranks_send(value: Any) -> None:
    assert same(payload.unpacked(payload.packed(value)), value)


def test_every_kind_of_record_was_sent_here() -> None:
    """Whoever adds one shows that it arrives."""
    seen: set[str] = set()

    def look(value: Any) -> None:
        name = type(value).__name__
        if name in payload.RECORDS:
            seen.add(name)
            for field in payload._FIELDS[name]:
                look(getattr(value, field))
        elif isinstance(value, (list, tuple)):
            list(map(look, value))
        elif isinstance(value, dict):
            list(map(look, value.values()))

    look(list(KINDS.values()))
    by_hypothesis = {"SchedulerOutput", "NewRequestData", "CachedRequestData", "SamplingParams"}
    by_hypothesis |= {"ScheduledEncoderInputStats", "StructuredOutputsParams"}
    assert payload.RECORDS.keys() - seen - by_hypothesis == {"MultipleOf"}
    assert same(payload.unpacked(payload.packed(payload.MultipleOf(16))), payload.MultipleOf(16))


class Bomb:
    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return os.mknod, (str(self._file),)


class Sub(SchedulerOutput):
    """Not the very class."""


NO_DATA = {
    "an object": object(),
    "a class": Bomb,
    "a function": os.system,
    "a lambda": lambda: None,
    "a process": subprocess.Popen,
    "a path": Path("x"),
    "a module": os,
    "a kind of a record": Sub.__new__(Sub),
    "an array of objects": np.array([Bomb], dtype=object),
    "a tensor elsewhere": torch.empty(1, device="meta"),
    "a sparse tensor": torch.ones(2).to_sparse(),
    "a number that is too long": 1 << 64,
    "half of a character": "\ud800",
    "too deep": [],
}
for _ in range(40):
    NO_DATA["too deep"] = (NO_DATA["too deep"],)


@pytest.mark.parametrize("value", NO_DATA.values(), ids=NO_DATA.keys())
def test_what_is_no_data_is_not_sent(value: Any) -> None:
    wire = payload.Wire()
    with pytest.raises(payload.PayloadError, match=r"no data that ranks|cannot be sent"):
        wire.packed({"in": [value]})
    assert wire.unpacked(wire.packed([1, (2,)])) == [1, (2,)]  # nothing of it is left


def test_what_is_refused_is_named() -> None:
    with pytest.raises(payload.PayloadError, match=r"a subprocess\.Popen is no data|a builtins"):
        payload.packed([object.__new__(subprocess.Popen)])


def extension(code: int, *words: Any) -> bytes:
    return bytes(msgpack.packb(msgpack.ExtType(code, msgpack.packb(list(words)))))


def described(code: int, name: Any, shape: Any, raw: bytes = b"") -> bytes:
    said = msgpack.packb([name, shape])
    return bytes(msgpack.packb(msgpack.ExtType(code, len(said).to_bytes(2, "little") + said + raw)))


def nested(depth: int) -> bytes:
    data = bytes(msgpack.packb([]))
    for _ in range(depth):
        data = bytes(msgpack.packb(msgpack.ExtType(payload._TUPLE, data)))
    return data


LIES = {
    "nothing": b"",
    "a pickle": pickle.dumps({"a": 1}),
    "no kind": extension(99, 1),
    "a class of Python": extension(payload._RECORD, "Popen", ["true"]),
    "a path to a class": extension(payload._RECORD, "subprocess.Popen", ["true"]),
    "a dunder": extension(payload._RECORD, "__class__", 1),
    "a number for a record": extension(payload._RECORD, 7),
    "a list for a record": extension(payload._RECORD, []),
    "no record": extension(payload._RECORD),
    "too few fields": extension(payload._RECORD, "SchedulerOutput", 1),
    "too many fields": extension(payload._RECORD, "Taken", 1, 2, 3),
    "a record for an enumeration": extension(payload._ENUMERATION, "Taken", "waited"),
    "no member": extension(payload._ENUMERATION, "KVQuantMode", "mro"),
    "a list for a member": extension(payload._ENUMERATION, "KVQuantMode", []),
    "a function for a dtype": msgpack.packb(msgpack.ExtType(payload._DTYPE, msgpack.packb("load"))),
    "a list that is a key": extension(payload._SET, []),
    "a fraction of nothing": extension(payload._FRACTION, 1, 0),
    "a fraction of text": extension(payload._FRACTION, "1e999999999", "1"),
    "a size of text": extension(payload._SIZE, "a"),
    "an array of objects": described(payload._ARRAY, "O", [1], b"12345678"),
    "an array of records": described(payload._ARRAY, "V8", [1], b"12345678"),
    "an array of much": described(payload._ARRAY, "<f4", [1 << 40], b"1234"),
    "a tensor of much": described(payload._TENSOR, "float32", [1 << 40]),
    "a tensor of less": described(payload._TENSOR, "float32", [3], b"1234"),
    "a tensor of minus": described(payload._TENSOR, "float32", [-1], b"1234"),
    "a tensor of dimensions": described(payload._TENSOR, "float32", [1] * 99, b"1234"),
    "a tensor of functions": described(payload._TENSOR, "load", [1], b"1234"),
    "a tensor and no more": msgpack.packb(msgpack.ExtType(payload._TENSOR, b"")),
    "a tensor of a length": msgpack.packb(msgpack.ExtType(payload._TENSOR, b"\xff\xff12")),
    "two values": msgpack.packb(1) + msgpack.packb(2),
    "a deep one": nested(500),
}


@pytest.mark.parametrize("data", LIES.values(), ids=LIES.keys())
def test_lies_are_refused(data: bytes) -> None:
    with pytest.raises(payload.PayloadError, match="another rank sent"):
        payload.unpacked(data)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    data = pickle.dumps(Bomb(tmp_path / "ran"))
    for code in range(1, 13):
        with pytest.raises(payload.PayloadError, match="another rank sent"):
            payload.unpacked(msgpack.packb(msgpack.ExtType(code, data)))
    assert not (tmp_path / "ran").exists()


valid = st.builds(payload.packed, steps() | leaves | st.lists(tensors | arrays, max_size=2))


@st.composite
def damaged(draw: Callable[..., Any]) -> bytes:
    """Something valid, with a few bytes changed, taken out or put in."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


@given(st.binary(max_size=80) | damaged())
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_data_or_refused(data: bytes) -> None:
    RAN.clear()
    try:
        value = payload.unpacked(data)
    except payload.PayloadError:
        value = None
    assert not RAN
    assert is_data(value)


RAN: list[str] = []
"""What ran while bytes were read, of all that Python audits and data has no use for."""
_NEVER = ("pickle.", "subprocess.", "os.", "exec", "import", "socket.", "open", "ctypes.")


def _audit(event: str, _: Any) -> None:
    if event.startswith(_NEVER):
        RAN.append(event)


sys.addaudithook(_audit)


def is_data(value: Any) -> bool:
    """Of the kinds that are named, all the way down."""
    if (
        isinstance(value, (list, tuple, set, frozenset))
        and type(value).__name__ not in payload._FIELDS
    ):
        return all(map(is_data, value))
    if isinstance(value, dict):
        return all(is_data(one) for pair in value.items() for one in pair)
    fields = payload._FIELDS.get(type(value).__name__)
    if fields:
        return all(is_data(getattr(value, name)) for name in fields)
    simple = (int, float, str, bytes, bytearray, torch.Tensor, torch.dtype, np.ndarray, np.generic)
    kinds = (*simple, *payload.ENUMERATIONS.values(), Fraction, msgpack.Timestamp)
    return value is None or isinstance(value, kinds)


def test_ranks_with_other_words_are_found_out() -> None:
    assert payload.vocabulary() == payload.vocabulary()
    before = payload.vocabulary()
    payload._FIELDS["Taken"] += ("more",)
    try:
        assert payload.vocabulary() != before
    finally:
        payload._FIELDS["Taken"] = payload._FIELDS["Taken"][:-1]
