"""Checkpoints and manifests from anybody: each is read, or refused in one clear line."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.config.model_facts import facts_from_directory
from shuntserve_core.errors import UserError
from shuntserve_core.weights import ModelName
from shuntserve_core.weights.geometry import geometry_of
from shuntserve_core.weights.manifest import FileRecord, decode_manifest, encode_manifest
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.sources import open_source
from shuntserve_core.weights.sources.gguf_layout import read_layout
from shuntserve_core.weights.sources.safetensors import INDEX, SafetensorsDirectory
from shuntserve_plugins.engines.embedded.geometry import read_geometry
from tests.core.weights.models import write_llama
from tests.core.weights.test_manifest import MANIFEST
from tests.core.weights.test_sources import write_gguf

NAME = ModelName("local", "m")


def outcome(call: Callable[[], object]) -> str:
    """Nothing but being read or refused passes."""
    try:
        call()
    except UserError as error:
        return str(error)
    return "read"


def write_safetensors(path: Path, header: Any, data: bytes = bytes(64)) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def tensor(begin: int, end: int, shape: object = None, dtype: object = "U8") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [end - begin] if shape is None else shape,
        "data_offsets": [begin, end],
    }


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, "tensors a and b overlap"),
        ({"a": tensor(0, 8), "b": tensor(2, 4)}, "tensors a and b overlap"),
        ({"a": tensor(0, 65)}, "ends inside tensor a"),
        ({"a": tensor(-8, 0, [8])}, "expected a whole number from 0"),
        ({"a": tensor(0, 8, [True, 8])}, "expected a whole number from 0"),
        ({"a": tensor(0, 8, [8.0])}, "expected a whole number from 0"),
        ({"a": tensor(0, 0, [0, 1 << 63])}, "expected a whole number from 0"),
        ({"a": tensor(0, 8, [1] * 17)}, "17 dimensions"),
        ({"a": tensor(0, 8, dtype={})}, "damaged safetensors header"),
        ({"a": {**tensor(0, 8), "data_offsets": [0, 1, 2]}}, "damaged safetensors header"),
        (b"[" * 100_000, "nested more than 64 levels"),
        (b'{"a":' * 100_000, "nested more than 64 levels"),
        (b"[" + b"[]," * 5_000_000 + b"[]]", "values, at most"),
        (b'{"a": NaN}', "NaN is no number"),
        (b"\xff\xfe", "damaged safetensors header"),
    ],
    ids=str,
)
def test_a_hostile_header(tmp_path: Path, header: Any, reason: str) -> None:
    write_safetensors(tmp_path / "model.safetensors", header)
    with pytest.raises(UserError, match=reason):
        _ = SafetensorsDirectory(tmp_path).tensors


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    for name in "ab":
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": tensor(0, 8)})
    with pytest.raises(UserError, match=r"tensor w is in a\.safetensors already"):
        _ = SafetensorsDirectory(tmp_path).tensors


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["../secret.safetensors"], "no safetensors file beside the index"),
        (["/etc/secret.safetensors"], "no safetensors file beside the index"),
        (["sub/secret.safetensors"], "no safetensors file beside the index"),
        (["config.json"], "no safetensors file beside the index"),
        ([3], "no safetensors file beside the index"),
        ([["a"]], "not an index"),
        (["stolen.safetensors"], "stolen.safetensors is a link out of the folder"),
        (["absent.safetensors"], "absent.safetensors missing"),
    ],
)
def test_an_index_that_leads_elsewhere(tmp_path: Path, names: list[Any], reason: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    write_safetensors(tmp_path / "secret.safetensors", {"w": tensor(0, 8)})
    (folder / "stolen.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict(enumerate(names))}))
    with pytest.raises(UserError, match=reason):
        _ = SafetensorsDirectory(folder).tensors


def test_an_index_without_end(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text('{"weight_map":' * 100_000)
    with pytest.raises(UserError, match="not an index"):
        _ = SafetensorsDirectory(tmp_path).tensors


def test_files_that_travel_with_weights_are_no_links_to_secrets(tmp_path: Path) -> None:
    checkpoint = write_llama(tmp_path / "m")
    (tmp_path / "secret").write_text("secret")
    (checkpoint / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"tokenizer\.json is a link out of the folder"):
        plan_push(SafetensorsDirectory(checkpoint), NAME, [1])


CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 8,
    "head_dim": 2,
    "intermediate_size": 16,
    "vocab_size": 10,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "quantization_config": None,
    "torch_dtype": "float16",
}
ODD = [0, -1, 10**9, 1 << 70, True, 1.5, "8", "", None, [], {}, [[]], "x" * 1000]


@pytest.mark.parametrize("key", sorted(CONFIG))
def test_odd_values_in_a_config(tmp_path: Path, key: str) -> None:
    for value in ODD:
        text = json.dumps({**CONFIG, key: value})
        (tmp_path / "config.json").write_text(text)
        readers = (
            lambda: geometry_of((tmp_path / "config.json").read_bytes()),
            lambda: facts_from_directory(tmp_path),
            lambda: read_geometry(tmp_path),
        )
        for read in readers:
            said = outcome(read)
            assert 0 < len(said.splitlines()[0]) == len(said) < 700


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_config_of_too_many_layers_is_refused_before_they_are_listed(
    tmp_path: Path, key: str
) -> None:
    checkpoint = write_llama(tmp_path / "m")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {key: 10**9}))
    with pytest.raises(UserError, match=f"{key}: expected a whole number"):
        plan_push(SafetensorsDirectory(checkpoint), NAME, [1])


@pytest.mark.parametrize(
    "changed",
    [
        evolve(MANIFEST, base=".."),
        evolve(MANIFEST, model="a/b"),
        evolve(MANIFEST, files={"../config.json": FileRecord(1, "x")}),
        evolve(MANIFEST, files={"config.json": FileRecord(-1, "x")}),
        evolve(MANIFEST, files={"config.json": FileRecord(1 << 60, "x")}),
        evolve(MANIFEST, tensors={"TP1/shard0/../../x.bin": next(iter(MANIFEST.tensors.values()))}),
        *(
            evolve(MANIFEST, tensors={p: evolve(r, shape=shape)})
            for p, r in MANIFEST.tensors.items()
            for shape in [(-1, -1), (1 << 63, 0), (1 << 40, 4), (1,) * 17]
        ),
    ],
)
def test_a_hostile_manifest_with_a_right_checksum(changed: Any) -> None:
    with pytest.raises(UserError, match="here: the manifest is damaged"):
        decode_manifest(encode_manifest(changed), where="here")


@pytest.fixture(scope="module")
def sound_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, "llama")
    return path.read_bytes()


def test_gguf_is_read_as_its_own_package_reads_it(sound_gguf: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(sound_gguf)
    layout, theirs = read_layout(path), gguf.GGUFReader(path)
    assert layout.data_offset == theirs.data_offset
    fields = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert layout.metadata == fields
    assert list(layout.tensors) == [t.name for t in theirs.tensors]
    for expected in theirs.tensors:
        found = layout.tensors[expected.name]
        assert (found.offset, found.nbytes) == (expected.data_offset, expected.n_bytes)
        assert np.array_equal(layout.rows(found).ravel(), expected.data.view(np.uint8).ravel())


def gguf_file(*, keys: int = 0, tensors: int = 0, rest: bytes = b"") -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, tensors, keys) + rest


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def info(name: bytes, dimensions: list[int], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return struct.pack("<Q", len(name)) + name + sizes + struct.pack("<IQ", kind, offset)


BIG = 1 << 62
F32, Q4_0, UINT8, STRING, ARRAY = 0, 2, 0, 8, 9


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too few"),
        (b"GGML" + bytes(20), "does not begin with GGUF"),
        (struct.pack("<4sIQQ", b"GGUF", 0x3000000, 0, 0), "big-endian"),
        (struct.pack("<4sIQQ", b"GGUF", 9, 0, 0), "version 9"),
        (gguf_file(keys=BIG), "keys, at most"),
        (gguf_file(keys=5000), "ends inside its metadata"),
        (gguf_file(tensors=BIG), "tensors, at most"),
        (gguf_file(tensors=99_999), "ends inside its metadata"),
        (gguf_file(keys=1, rest=struct.pack("<Q", BIG)), "bytes of text, at most"),
        (gguf_file(keys=1, rest=key(b"k", STRING, struct.pack("<Q", BIG))), "bytes of text"),
        (gguf_file(keys=1, rest=key(b"k", STRING, struct.pack("<Q", 9))), "ends inside"),
        (gguf_file(keys=1, rest=key(b"k", 99, b"")), "unknown type 99"),
        (
            gguf_file(keys=1, rest=key(b"k", ARRAY, struct.pack("<IQ", UINT8, BIG))),
            "elements of an array, at most",
        ),
        (
            gguf_file(keys=1, rest=key(b"k", ARRAY, struct.pack("<IQ", STRING, 3_000_000))),
            "ends inside",
        ),
        (
            gguf_file(keys=1, rest=key(b"k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 100_000)),
            "array of unknown type 9",
        ),
        (gguf_file(keys=2, rest=key(b"k", UINT8, b"1") * 2), "the key k comes twice"),
        (gguf_file(keys=1, rest=key(b"general.alignment", 4, struct.pack("<I", 3))), "alignment"),
        (gguf_file(keys=1, rest=key(b"general.alignment", 4, bytes(4))), "an alignment of 0"),
        (gguf_file(tensors=1, rest=info(b"t", [BIG], F32, 0)), "ends inside tensor t"),
        (gguf_file(tensors=1, rest=info(b"t", [1], F32, BIG)), "ends inside tensor t"),
        (gguf_file(tensors=1, rest=info(b"t", [1] * 9, F32, 0)), "9 dimensions"),
        (gguf_file(tensors=1, rest=info(b"t", [], F32, 0)), "with shape"),
        (gguf_file(tensors=1, rest=info(b"t", [0], F32, 0)), "with shape"),
        (gguf_file(tensors=1, rest=info(b"t", [33], Q4_0, 0)), "with shape"),
        (gguf_file(tensors=1, rest=info(b"t" * 65, [1], F32, 0)), "bytes of text"),
        (gguf_file(tensors=1, rest=info(b"t", [1], 12345, 0)), "12345"),
        (gguf_file(tensors=2, rest=info(b"t", [1], F32, 0) * 2), "comes twice"),
        (
            gguf_file(
                tensors=2, rest=info(b"t", [8], F32, 0) + info(b"u", [8], F32, 16) + bytes(200)
            ),
            "tensors t and u overlap",
        ),
    ],
)
def test_a_hostile_gguf_file(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"not a GGUF file: .*{reason}"):
        open_source(str(path))


def read_all(path: Path) -> None:
    """As a push does."""
    source, name = open_source(str(path))
    for shard in plan_push(source, name, [1, 2]).shards[::20]:
        source.read(shard.tensor.name)


@settings(max_examples=150, deadline=None)
@given(
    damage=st.lists(
        st.tuples(
            st.integers(0, 1999),
            st.sampled_from([b"\0", b"\1", b"\xff", b"\xff" * 4, b"\xff" * 8, bytes(8), b"\x7f"])
            | st.binary(min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=4,
    ),
    cut=st.none() | st.integers(0, 4000),
)
def test_any_damage_to_a_gguf_file_is_read_or_refused(
    sound_gguf: bytes, damage: list[tuple[int, bytes]], cut: int | None
) -> None:
    data = bytearray(sound_gguf)
    for position, value in damage:
        data[position : position + len(value)] = value
    check(bytes(data[:cut]), "m.gguf")


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), damage=st.integers(1, 3), value=st.sampled_from(ODD))
def test_any_change_to_a_safetensors_header_is_read_or_refused(
    checkpoint: Path, seed: int, damage: int, value: object
) -> None:
    chance = random.Random(seed)
    data = (checkpoint / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for _ in range(damage):
        name = chance.choice([name for name, entry in header.items() if entry])
        place = chance.choice(["dtype", "shape", "data_offsets", "whole", "number"])
        if place == "whole":
            header[name] = value
        elif place == "number" and isinstance(header[name], dict):
            numbers = header[name].get(chance.choice(["shape", "data_offsets"]))
            if isinstance(numbers, list) and numbers:
                numbers[chance.randrange(len(numbers))] = value
        elif isinstance(header[name], dict):
            header[name][place] = value
    text = json.dumps(header).encode()
    config = (checkpoint / "config.json").read_bytes()
    check(struct.pack("<Q", len(text)) + text + data[8 + length :], "model.safetensors", config)


def check(data: bytes, name: str, config: bytes | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        if config:
            (path.parent / "config.json").write_bytes(config)
        assert outcome(lambda: read_all(path.parent if config else path))


def test_small_hostile_files_take_no_memory(tmp_path: Path) -> None:
    """Every hostile file above is refused within an address space that holds little more."""
    files = {
        "counts.gguf": gguf_file(keys=9000, tensors=99_000),
        "array.gguf": gguf_file(keys=1, rest=key(b"k", ARRAY, struct.pack("<IQ", UINT8, 1 << 40))),
        "strings.gguf": gguf_file(
            keys=1, rest=key(b"k", ARRAY, struct.pack("<IQ", STRING, 4_000_000) + bytes(1000))
        ),
        "tensor.gguf": gguf_file(tensors=1, rest=info(b"t", [1 << 40], F32, 0)),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    folder = tmp_path / "nested"
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", b"[" + b"[]," * 10_000_000 + b"[]]")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    layers = write_llama(tmp_path / "layers")
    (layers / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 1 << 40}))
    code = f"""
import gguf, resource, sys
from shuntserve_core.errors import UserError
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.sources import open_source
size = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20),) * 2)
for name in {[*files, "nested", "layers"]!r}:
    try:
        source, model = open_source({str(tmp_path)!r} + "/" + name)
        plan_push(source, model, [1])
    except UserError as error:
        print("refused", error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("refused") == len(files) + 2
