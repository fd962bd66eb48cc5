"""`[workload]`: means, and traces of lengths."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from shuntserve_core.config import load_config
from shuntserve_core.errors import UserError

WriteConfig = Callable[..., Path]
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\nt,100,10\nt,300,50\nt,4000,10\nt,100,0\n"


def test_means_alone(write_config: WriteConfig) -> None:
    workload = load_config(write_config()).workload
    assert (workload.input_tokens, workload.output_tokens) == (763, 232)
    assert workload.max_length == 8192
    assert workload.lengths == ()


def test_a_trace_gives_lengths_and_means(tmp_path: Path, write_config: WriteConfig) -> None:
    (tmp_path / "trace.csv").write_text(TRACE)
    text = '[workload]\ntrace = "trace.csv"\ntrace_max_tokens = 2048\n'
    workload = load_config(write_config(workload=text)).workload
    assert workload.lengths == ((100, 10), (300, 50), (100, 1))  # no answer counts as one token
    assert (workload.input_tokens, workload.output_tokens) == (167, 20)


def test_given_means_win_over_the_trace(tmp_path: Path, write_config: WriteConfig) -> None:
    (tmp_path / "trace.csv").write_text(TRACE)
    text = '[workload]\ntrace = "trace.csv"\ninput_tokens = 5\n'
    workload = load_config(write_config(workload=text)).workload
    assert (workload.input_tokens, workload.output_tokens) == (5, 18)
    assert len(workload.lengths) == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mooncake.jsonl", b'{"timestamp": 1500, "input_length": 30, "output_length": 5}\n'),
        ("own.csv", b"# ours\nat,input_tokens,output_tokens\n1,30.0,5\n"),
        ("own.json", b'[{"at": 1, "input_tokens": 30, "output_tokens": 5}]'),
        ("lengths.csv", b"ContextTokens, GeneratedTokens\n30,5\n"),
        (
            "azure.csv.gz",
            gzip.compress(b"TIMESTAMP,ContextTokens,GeneratedTokens\nt,30,5\n", mtime=0),
        ),
    ],
)
def test_every_form_that_simulate_reads_is_read(
    tmp_path: Path, write_config: WriteConfig, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    text = f'[workload]\ntrace = "{name}"\n'
    assert load_config(write_config(workload=text)).workload.lengths == ((30, 5),)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("ContextTokens,Generated\n1,2\n", "no column GeneratedTokens"),
        ("ContextTokens,GeneratedTokens\n1,two\n", "line 2.*whole number of tokens.*leave it out"),
        ("ContextTokens,GeneratedTokens\n1\n", "line 2.*GeneratedTokens is blank.*leave it out"),
        ("ContextTokens,GeneratedTokens\n9000,2\n", "no request within the limits"),
        ("", "no requests; give rows with .*ContextTokens"),
    ],
)
def test_traces_that_cannot_be_used(
    content: str, says: str, tmp_path: Path, write_config: WriteConfig
) -> None:
    (tmp_path / "trace.csv").write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        load_config(write_config(workload='[workload]\ntrace = "trace.csv"\n'))
    assert caught.value.where.endswith("workload.trace")
