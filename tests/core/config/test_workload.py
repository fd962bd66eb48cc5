"""`[workload]`: means, and traces of lengths."""

from __future__ import annotations

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
    assert workload.lengths == ((100, 10), (300, 50))
    assert (workload.input_tokens, workload.output_tokens) == (200, 30)


def test_given_means_win_over_the_trace(tmp_path: Path, write_config: WriteConfig) -> None:
    (tmp_path / "trace.csv").write_text(TRACE)
    text = '[workload]\ntrace = "trace.csv"\ninput_tokens = 5\n'
    workload = load_config(write_config(workload=text)).workload
    assert (workload.input_tokens, workload.output_tokens) == (5, 23)
    assert len(workload.lengths) == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("ContextTokens,Generated\n1,2\n", "no column GeneratedTokens"),
        ("ContextTokens,GeneratedTokens\n1,two\n", "whole numbers"),
        ("ContextTokens,GeneratedTokens\n1\n", "whole numbers"),
        ("ContextTokens,GeneratedTokens\n9000,2\n", "no request within the limits"),
        ("", "no column"),
    ],
)
def test_traces_that_cannot_be_used(
    content: str, says: str, tmp_path: Path, write_config: WriteConfig
) -> None:
    (tmp_path / "trace.csv").write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        load_config(write_config(workload='[workload]\ntrace = "trace.csv"\n'))
    assert caught.value.where.endswith("workload.trace")
