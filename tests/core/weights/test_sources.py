from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shuntserve_core.errors import UserError
from shuntserve_core.weights import ModelName
from shuntserve_core.weights.geometry import geometry_of
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.sources import open_source
from shuntserve_core.weights.sources.gguf import GgufFile
from shuntserve_core.weights.sources.safetensors import SafetensorsDirectory
from tests.core.weights.models import write_llama

NAME = ModelName("local", "tiny")


def test_an_incomplete_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = write_llama(tmp_path / "m", layers=2)
    config = json.loads((checkpoint / "config.json").read_bytes())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lacks model\.layers\.2\.input_layernorm.* and 8 more"):
        plan_push(SafetensorsDirectory(checkpoint), NAME, [1])


@pytest.mark.parametrize(("degree", "reason"), [(3, "8 attention heads"), (0, "at least 1")])
def test_a_degree_that_does_not_divide_is_refused(
    checkpoint: Path, degree: int, reason: str
) -> None:
    with pytest.raises(UserError, match=f"--tp {degree}: .*{reason}"):
        plan_push(SafetensorsDirectory(checkpoint), NAME, [degree])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no header fits"),
        (struct.pack("<Q", 1 << 60) + b"{}", "no header fits"),
        (struct.pack("<Q", 2) + b"[]", "damaged safetensors header"),
        (struct.pack("<Q", 9) + b'{"a": {}}', "damaged safetensors header"),
    ],
)
def test_a_damaged_safetensors_file_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=reason):
        _ = SafetensorsDirectory(tmp_path).tensors


def test_a_safetensors_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    checkpoint = write_llama(tmp_path / "m")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match="the file ends inside tensor"):
        _ = SafetensorsDirectory(checkpoint).tensors


def in_two_files(folder: Path) -> dict[str, str]:
    """A checkpoint with an index; returns the file of each tensor."""
    whole = load_file(write_llama(folder) / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, chosen in files.items():
        save_file({name: whole[name] for name in chosen}, folder / file)
    return {name: file for file, chosen in files.items() for name in chosen}


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def test_an_index_that_says_where_tensors_are(tmp_path: Path) -> None:
    weight_map = in_two_files(tmp_path / "m")
    write_index(tmp_path / "m", weight_map)
    assert {t.name for t in SafetensorsDirectory(tmp_path / "m").tensors} == set(weight_map)


def test_an_index_that_names_another_file(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    weight_map = in_two_files(folder)
    write_index(folder, {**weight_map, "model.norm.weight": "a.safetensors"})
    other = {"a.safetensors": "b.safetensors", "b.safetensors": "a.safetensors"}
    wrong = {**weight_map, "model.norm.weight": other[weight_map["model.norm.weight"]]}
    write_index(folder, wrong)
    says = f"names {wrong['model.norm.weight']} for tensor model.norm.weight, which is in "
    with pytest.raises(UserError, match=says + weight_map["model.norm.weight"]) as caught:
        _ = SafetensorsDirectory(folder).tensors
    assert "of one revision" in caught.value.remedy
    write_index(folder, {**weight_map, "gone": "a.safetensors"})
    with pytest.raises(UserError, match="for tensor gone, which is not there"):
        _ = SafetensorsDirectory(folder).tensors
    write_index(folder, {})
    with pytest.raises(UserError, match="it names none") as caught:
        _ = SafetensorsDirectory(folder).tensors
    assert "download it again" in caught.value.remedy


def test_a_single_file_beside_an_index_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    write_index(folder, in_two_files(folder))
    write_llama(folder, seed=1)
    with pytest.raises(UserError, match=r"model\.safetensors, and an index") as caught:
        _ = SafetensorsDirectory(folder).tensors
    assert "keep one" in caught.value.remedy
    (folder / "model.safetensors").rename(tmp_path / "away")
    assert SafetensorsDirectory(folder).tensors


def test_what_is_no_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a directory, nor a \.gguf file"):
        open_source("nonsense")
    with pytest.raises(UserError, match="there are no safetensors files"):
        _ = open_source(str(tmp_path))[0].tensors
    with pytest.raises(UserError, match=r"no config\.json"):
        _ = open_source(str(tmp_path))[0].files
    with pytest.raises(UserError, match="there is no such file"):
        open_source(str(tmp_path / "m.gguf"))
    (tmp_path / "m.gguf").write_bytes(b"GGML")
    with pytest.raises(UserError, match="not a GGUF file"):
        open_source(str(tmp_path / "m.gguf"))


HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 4, 2, 8, 32


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp does to q and k: the two halves of each head's rows are interleaved."""
    halves = weights.reshape(heads, 2, len(weights) // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def write_gguf(
    path: Path,
    family: str,
    metadata: Mapping[str, Any] = MappingProxyType({}),
    instead: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
    """One layer with biases; returns the tensors by their Hugging Face names."""
    random = np.random.default_rng(0)
    shapes = {
        "attn_q": (HEADS * HEAD_DIM, HIDDEN),
        "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_output": (HIDDEN, HEADS * HEAD_DIM),
        "ffn_gate": (64, HIDDEN),
        "ffn_up": (64, HIDDEN),
        "ffn_down": (HIDDEN, 64),
    }
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    if f"{family}.attention.head_count_kv" not in metadata:
        writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("llama")
    adders: dict[type, Any] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in metadata.items():
        adders[type(value)](key, value)
    names = {**{f"blk.0.{kind}.weight": shape for kind, shape in shapes.items()}}
    names |= {f"blk.0.attn_{kind}.bias": (shapes[f"attn_{kind}"][0],) for kind in "qkv"}
    if family == "llama":  # whose config has one word for all four
        names["blk.0.attn_output.bias"] = (HIDDEN,)
    names |= {"blk.0.attn_norm.weight": (HIDDEN,), "blk.0.ffn_norm.weight": (HIDDEN,)}
    names |= {"token_embd.weight": (100, HIDDEN), "output_norm.weight": (HIDDEN,)}
    tensors = {}
    for name, shape in names.items():
        numbers = random.standard_normal(shape).astype(np.float16).astype(np.float32)
        tensors[name] = numbers
        if family == "llama" and ".attn_q." in name:
            numbers = permuted(numbers, HEADS)
        if family == "llama" and ".attn_k." in name:
            numbers = permuted(numbers, KV_HEADS)
        writer.add_tensor(name, instead.get(name, numbers))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_gguf_comes_out_as_the_checkpoint_that_went_in(family: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    written = write_gguf(path, family)
    source = GgufFile(path)
    expected = {
        "model.layers.0.self_attn.q_proj.weight": written["blk.0.attn_q.weight"],
        "model.layers.0.self_attn.k_proj.weight": written["blk.0.attn_k.weight"],
        "model.layers.0.self_attn.q_proj.bias": written["blk.0.attn_q.bias"],
        "model.layers.0.self_attn.k_proj.bias": written["blk.0.attn_k.bias"],
        "model.layers.0.self_attn.o_proj.weight": written["blk.0.attn_output.weight"],
        "model.layers.0.mlp.down_proj.weight": written["blk.0.ffn_down.weight"],
        "model.layers.0.post_attention_layernorm.weight": written["blk.0.ffn_norm.weight"],
        "model.embed_tokens.weight": written["token_embd.weight"],
    }
    for name, numbers in expected.items():
        read = source.read(name).view(np.float16).reshape(numbers.shape)
        assert np.array_equal(read, numbers.astype(np.float16)), name
    geometry = geometry_of(source.files["config.json"])
    assert (geometry.vocab, geometry.kv_heads, geometry.tied_embeddings) == (100, KV_HEADS, True)
    assert "tokenizer.json" not in source.files
    plan_push(source, NAME, [1, 2, 4])


@pytest.mark.parametrize(
    ("key", "value", "says", "remedy"),
    [
        ("split.count", 3, "one of 3 parts", "llama-gguf-split --merge"),
        ("general.type", "adapter", "LoRA adapter", "llama-export-lora"),
        ("adapter.lora.alpha", 16.0, "LoRA adapter", "llama-export-lora"),
        ("llama.attention.sliding_window", 64, "sliding_window is 64", "safetensors"),
        ("llama.attention.value_length", 4, "value_length is 4, of heads of 8", "safetensors"),
        ("llama.rope.dimension_count", 4, "dimension_count is 4, of heads of 8", "safetensors"),
        ("llama.rope.scaling.type", "longrope", "'longrope'", "safetensors"),
        ("llama.rope.scaling.factor", -2.0, "factor is -2.0", "safetensors"),
        ("llama.rope.scaling.attn_factor", 1.5, "attn_factor is 1.5", "safetensors"),
        ("llama.rope.scaling.yarn_beta_fast", 16.0, "yarn_beta_fast", "safetensors"),
        ("llama.use_parallel_residual", True, "use_parallel_residual is True", "safetensors"),
        ("llama.attention.causal", False, "causal", "safetensors"),
        ("llama.pooling_type", 1, "pooling_type is 1", "safetensors"),
        ("llama.swin_norm", True, "swin_norm", "safetensors"),
        ("llama.novel", [1, 2], "novel", "safetensors"),
        ("llama.attention.head_count_kv", [2, 2], "whole number", ""),
    ],
)
def test_gguf_metadata_that_changes_the_arithmetic(
    key: str, value: Any, says: str, remedy: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", {key: value})
    with pytest.raises(UserError, match=says) as caught:
        plan_push(open_source(str(tmp_path / "m.gguf"))[0], NAME, [1])
    assert remedy in caught.value.remedy


def test_gguf_metadata_that_changes_nothing(tmp_path: Path) -> None:
    """And factors without a type, as llama.cpp reads them: linear."""
    harmless = {
        "general.quantization_version": 2,
        "general.file_type": 1,
        "general.tags": ["a"],
        "quantize.imatrix.file": "x",
        "tokenizer.ggml.pre": "default",
        "split.count": 0,
        "llama.vocab_size": 100,
        "llama.rope.dimension_count": HEAD_DIM,
        "llama.rope.scaling.type": "none",
        "llama.rope.scaling.factor": 4.0,
        "llama.attention.sliding_window": 0,
        "llama.attention.causal": True,
        "llama.logit_scale": 1.0,
        "llama.expert_count": 0,
    }
    write_gguf(tmp_path / "m.gguf", "llama", harmless)
    source, _ = open_source(str(tmp_path / "m.gguf"))
    assert plan_push(source, NAME, [1]).shards
    assert "rope_scaling" not in json.loads(source.files["config.json"])
    write_gguf(tmp_path / "n.gguf", "llama", {"llama.rope.scale_linear": 4.0})
    config = json.loads(open_source(str(tmp_path / "n.gguf"))[0].files["config.json"])
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_a_gguf_tensor_of_a_type_without_numbers(tmp_path: Path) -> None:
    tensors = {"blk.0.attn_q.weight": np.ones((HEADS * HEAD_DIM, HIDDEN), np.int32)}
    write_gguf(tmp_path / "m.gguf", "llama", instead=tensors)
    with pytest.raises(UserError, match=r"q_proj\.weight is of type I32") as caught:
        plan_push(open_source(str(tmp_path / "m.gguf"))[0], NAME, [1])
    assert "plain float16" in caught.value.remedy


def test_gguf_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, "gemma")
    with pytest.raises(UserError, match="architecture 'gemma' cannot be read"):
        GgufFile(path)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A hub with one repository, as far as downloading goes."""
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/org/tiny/revision/"):
                siblings = [{"rfilename": name} for name in files]
                data = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()
            elif path.startswith("/api/models/org/tiny/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": name}
                    for name, content in files.items()
                ]
                data = json.dumps(tree).encode()
            elif path.startswith("/org/tiny/resolve/"):
                data = files[path.rpartition("/")[2]]
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{len(data)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield endpoint
        server.shutdown()
        thread.join()


def test_hub_repository_by_its_commit(hub: str, checkpoint: Path) -> None:
    from shuntserve_core.weights.sources import hub as reader

    source = reader.download("org/tiny", endpoint=hub)
    assert source.source.revision == COMMIT
    assert source.source.kind == "hub"
    local = SafetensorsDirectory(checkpoint)
    assert source.files == local.files
    for tensor in local.tensors:
        assert np.array_equal(source.read(tensor.name), local.read(tensor.name))


def test_hub_repository_that_is_not_there(hub: str) -> None:
    from shuntserve_core.weights.sources import hub as reader

    with pytest.raises(UserError, match="nor a repository on the hub"):
        reader.download("org/other", endpoint=hub)
