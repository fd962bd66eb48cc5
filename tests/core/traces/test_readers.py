"""Workload traces of every form, and what is said of broken ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuntserve_core.errors import UserError
from shuntserve_core.traces.readers import read_requests
from shuntserve_core.traces.synthetic import lognormal_lengths, synthetic
from shuntserve_core.traces.workload import Requests

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
MOONCAKE = """{"timestamp": 1500, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 4500, "input_length": 7322, "output_length": 490, "hash_ids": [0]}
"""
OWN = """# a comment
# and another
at,input_tokens,output_tokens
3.5,10,20
1.0,30,0
"""


ZONES = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00+00:00,5,6
2024-05-10 01:00:00.500000+01:00,7,8
"""


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("azure.csv", AZURE, [(0.0, 374, 44), (4.314579, 396, 109)]),
        ("mooncake.jsonl", MOONCAKE, [(0.0, 6758, 500), (3.0, 7322, 490)]),
        ("own.csv", OWN, [(0.0, 30, 1), (2.5, 10, 20)]),
        ("floats.csv", OWN.replace("10,20", "10.0,2e1"), [(0.0, 30, 1), (2.5, 10, 20)]),
        ("blanks.csv", OWN.replace("3.5", "\n\n 3.5"), [(0.0, 30, 1), (2.5, 10, 20)]),
        ("zones.csv", ZONES, [(0.0, 5, 6), (0.5, 7, 8)]),
        ("own.json", json.dumps([{"at": 1, "input_tokens": 5, "output_tokens": 6}]), [(0, 5, 6)]),
    ],
)
def test_forms(tmp_path: Path, name: str, text: str, rows: list[tuple[float, int, int]]) -> None:
    file = tmp_path / name
    file.write_text(text)
    requests = read_requests(file)
    found = list(zip(*requests.columns(), strict=True))
    assert [row[1:] for row in found] == [row[1:] for row in rows]
    assert [row[0] for row in found] == pytest.approx([row[0] for row in rows], abs=1e-5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no requests"),
        ("a,b\n1,2\n", "not a workload trace"),
        (OWN + "x,1,2\n", "line 6"),
        ('{"timestamp": 1}\n', "not a workload trace"),
        ("[1, 2]", "not a workload trace"),
        ("[{]", "not JSON"),
        (OWN + "\n\n4,,2\n", "line 8.*input_tokens is blank, .*leave it out"),
        (OWN + "4,1.5,2\n", "line 6.*input_tokens is '1.5', expected a whole number of tokens"),
        (OWN + "4,1,-2\n", "line 6.*output_tokens is '-2', expected a whole number"),
        (OWN + "4,1,1e12\n", "line 6.*output_tokens is '1e12'.* from 0 to 10000000"),
        (OWN + "4,nan,2\n", "line 6.*input_tokens is 'nan'"),
        (OWN + "inf,1,2\n", "line 6.*at is 'inf', expected a time; correct it"),
        ('[{"at": 1, "input_tokens": true, "output_tokens": 6}]', "input_tokens is True"),
        (OWN.replace("output", "out"), "no column output_tokens; give rows with"),
        (OWN + "4,'" + "1" * 200_000, "not CSV: field larger.*; save it as CSV"),
        ('[{"at": 1, "input_tokens": 5, "output_tokens": 6}, 7]', "request 1.*not an object"),
    ],
)
def test_broken_ones_say_where(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        read_requests(file)
    assert str(file) in str(error.value)


def test_compressed_traces_are_read_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "azure.csv.gz"
    file.write_bytes(gzip.compress(AZURE.encode()))
    assert read_requests(file).prompt.tolist() == [374, 396]
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match=r"not a whole gzip file.*fetch it again"):
        read_requests(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_requests(tmp_path / "none.csv")


def test_parts_of_a_trace() -> None:
    requests = Requests.of([0, 10, 20, 30], [5, 50, 500, 5000], [1, 2, 3, 4])
    assert requests.at_most(500).prompt.tolist() == [5, 50, 500]
    assert requests.fitting(55).prompt.tolist() == [5, 50]
    assert requests.between(10, 30).arrival.tolist() == [0, 10]
    assert requests.scaled(0.5).arrival.tolist() == [0, 5, 10, 15]
    assert requests.repeated(6).arrival.tolist() == [0, 10, 20, 30, 40, 50]
    assert requests.lengths[0] == (5, 1)


@given(variation=st.sampled_from([0.0, 0.5, 1.0, 3.0]), seed=st.integers(0, 5))
def test_gaps_have_the_mean_and_the_spread_that_was_asked_for(variation: float, seed: int) -> None:
    requests = synthetic(40_000, 4.0, ((3, 4), (5, 6)), variation=variation, seed=seed)
    gaps = np.diff(requests.arrival)
    assert gaps.mean() == pytest.approx(0.25, rel=0.08)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, abs=0.01 + 0.08 * variation)
    assert set(requests.lengths) == {(3, 4), (5, 6)}
    again = synthetic(40_000, 4.0, ((3, 4), (5, 6)), variation=variation, seed=seed)
    assert np.array_equal(requests.arrival, again.arrival)


def test_lognormal_lengths_have_their_means() -> None:
    rng = np.random.default_rng(0)
    prompts, answers = lognormal_lengths((700, 200), 0.8, 100_000, rng, 50_000)
    assert prompts.mean() == pytest.approx(700, rel=0.03)
    assert answers.mean() == pytest.approx(200, rel=0.03)
    assert prompts.min() >= 1
