"""Broken files: each gives one line with file, key, what is wrong and what would be right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from shuntserve_core.config import load_config
from shuntserve_core.errors import UserError, UserErrorGroup


class Broken(NamedTuple):
    """Pieces that replace sound ones, and what the message must say."""

    key: str
    says: str
    remedy: str
    pieces: dict[str, str]


GPU = '[[gpu]]\nname = "X1"\nmemory_bytes = 24e9\nmemory_bandwidth = 9e11\n'
KIND = '[[instance_type]]\nname = "box"\ngpu = "L4"\n'


def _model(text: str) -> dict[str, str]:
    return {"model": f"[model]\n{text}\n"}


def _workload(text: str) -> dict[str, str]:
    return {"workload": f"[workload]\n{text}\n"}


def _cluster(text: str) -> dict[str, str]:
    return {"cluster": f"[[cluster]]\n{text}\n"}


CASES = {
    "unknown model": Broken("model.name", "unknown model", "Qwen", _model('name = "Qwen3-33B"')),
    "no model": Broken("model.name", "missing", "path", _model("")),
    "no model table": Broken("model", "missing", "[model]", {"model": ""}),
    "model as a number": Broken("model.name", "not a text", "quotes", _model("name = 3")),
    "model as a text": Broken("model", "not a table", "[table]", {"model": 'model = "x"'}),
    "two models": Broken("", "not valid TOML", "correct", {"model": "[model]\n[model]"}),
    "unknown key": Broken(
        "model.hiden", "unknown key", "'hidden'", _model('name = "Qwen3-8B"\nhiden = 1')
    ),
    "unknown dtype": Broken(
        "model.kv_dtype", "not allowed", "fp8", _model('name = "Qwen3-8B"\nkv_dtype = "fp9"')
    ),
    "zero layers": Broken(
        "model.layers", "out of range", "from 1", _model('name = "Qwen3-8B"\nlayers = 0')
    ),
    "heads that do not divide": Broken(
        "model.kv_heads", "do not divide", "divisor", _model('name = "Qwen3-8B"\nkv_heads = 5')
    ),
    "no head_dim to derive": Broken(
        "model.head_dim",
        "missing",
        "give head_dim",
        _model("layers=2\nhidden=100\nheads=3\nkv_heads=1\nintermediate=9\nvocab=9"),
    ),
    "facts that lack one": Broken(
        "model.name", "missing", "vocab", _model("layers=2\nhidden=96\nheads=3\nkv_heads=1")
    ),
    "no such folder": Broken("model.path", "cannot read", "folder", _model('path = "nowhere"')),
    "no workload": Broken("workload", "missing", "[workload]", {"workload": ""}),
    "tokens as a text": Broken(
        "workload.input_tokens",
        "not a whole number",
        "without quotes",
        _workload('input_tokens = "763"\noutput_tokens = 1'),
    ),
    "half a token": Broken(
        "workload.output_tokens",
        "not a whole number",
        "whole number",
        _workload("input_tokens = 763\noutput_tokens = 1.5"),
    ),
    "no output tokens": Broken(
        "workload.output_tokens", "missing", "output_tokens", _workload("input_tokens = 763")
    ),
    "negative tokens": Broken(
        "workload.input_tokens",
        "out of range",
        "from 1",
        _workload("input_tokens = -763\noutput_tokens = 1"),
    ),
    "tokens as true": Broken(
        "workload.input_tokens",
        "not a whole number",
        "whole number",
        _workload("input_tokens = true\noutput_tokens = 1"),
    ),
    "huge number": Broken(
        "workload.input_tokens",
        "too large",
        "at most",
        _workload(f"input_tokens = {10**30}\noutput_tokens = 1"),
    ),
    "max_length too small": Broken(
        "workload.max_length",
        "less than",
        "at least 995",
        _workload("input_tokens = 763\noutput_tokens = 232\nmax_length = 900"),
    ),
    "max_length beyond the model": Broken(
        "workload.max_length",
        "positions",
        "at most 40960",
        _workload("input_tokens = 763\noutput_tokens = 232\nmax_length = 50000"),
    ),
    "no such trace": Broken(
        "workload.trace", "cannot read", "give a file", _workload('trace = "no.csv"')
    ),
    "trace is this file": Broken(
        "workload.trace",
        "not a workload trace",
        "give rows with",
        _workload('trace = "cluster.toml"'),
    ),
    "no cluster": Broken("cluster", "missing", "[[cluster]]", {"cluster": ""}),
    "cluster as one table": Broken(
        "cluster", "not a list", "[[", {"cluster": '[cluster]\ninstance = "g6e.xlarge"\ncount=1'}
    ),
    "unknown instance type": Broken(
        "cluster[0].instance",
        "unknown instance type",
        "'g6.12xlarge'",
        _cluster('instance = "g6.12xlarg"\ncount = 1'),
    ),
    "negative count": Broken(
        "cluster[0].count", "out of range", "from 0", _cluster('instance = "g6.xlarge"\ncount = -1')
    ),
    "no count": Broken("cluster[0].count", "missing", "count", _cluster('instance = "g6e.xlarge"')),
    "every count is zero": Broken(
        "cluster", "every count", "at least one", _cluster('instance = "g6e.xlarge"\ncount = 0')
    ),
    "unknown market": Broken(
        "cluster[0].market",
        "not allowed",
        '"on-demand"',
        _cluster('instance = "g6e.xlarge"\ncount = 1\nmarket = "ondemand"'),
    ),
    "price as a text": Broken(
        "cluster[0].price",
        "not a number",
        "without quotes",
        _cluster('instance = "g6e.xlarge"\ncount = 1\nprice = "$1"'),
    ),
    "price that is no number": Broken(
        "cluster[0].price",
        "not a finite number",
        "",
        _cluster('instance = "g6e.xlarge"\ncount = 1\nprice = nan'),
    ),
    "no spot price known": Broken(
        "cluster[0].price",
        "no spot price",
        "on-demand",
        _cluster('instance = "p5.48xlarge"\ncount = 1'),
    ),
    "type twice": Broken(
        "cluster[1].instance",
        "already in cluster[0]",
        "join",
        _cluster(
            'instance = "g6e.xlarge"\ncount = 1\n[[cluster]]\ninstance = "g6e.xlarge"\ncount = 2'
        ),
    ),
    "unknown objective": Broken(
        "objective.kind", "not allowed", '"cost"', {"extra": '[objective]\nkind = "speed"'}
    ),
    "cost without a rate": Broken(
        "objective.rate", "missing", "rate", {"extra": '[objective]\nkind = "cost"'}
    ),
    "negative budget": Broken(
        "objective.budget", "out of range", "more than 0", {"extra": "[objective]\nbudget = -1"}
    ),
    "zero ttft": Broken(
        "objective.slo.ttft", "out of range", "more than 0", {"extra": "[objective.slo]\nttft = 0"}
    ),
    "unknown slo": Broken(
        "objective.slo.ttf", "unknown key", "'ttft'", {"extra": "[objective.slo]\nttf = 1"}
    ),
    "unknown mode": Broken(
        "objective.slo.mode", "not allowed", '"soft"', {"extra": '[objective.slo]\nmode = "sort"'}
    ),
    "unknown optimizer": Broken(
        "optimizer.name", "unknown optimizer", "'exact'", {"extra": '[optimizer]\nname = "exakt"'}
    ),
    "unknown estimator": Broken(
        "estimator.name", "unknown estimator", "'paper'", {"estimator": '[estimator]\nname="papr"'}
    ),
    "unknown option": Broken(
        "estimator.memory_fractoin",
        "unknown key",
        "'memory_fraction'",
        {"estimator": '[estimator]\nname = "paper"\nmemory_fractoin = 0.9'},
    ),
    "option out of range": Broken(
        "estimator.memory_fraction",
        "out of range",
        "at most 1",
        {"estimator": '[estimator]\nname = "paper"\nmemory_fraction = 1.5'},
    ),
    "flag as a text": Broken(
        "optimizer.whole_instances",
        "not a truth value",
        "without quotes",
        {"extra": '[optimizer]\nwhole_instances = "yes"'},
    ),
    "time limit of nothing": Broken(
        "optimizer.time_limit",
        "out of range",
        "more than 0",
        {"extra": "[optimizer]\ntime_limit=0"},
    ),
    "gpu without flops": Broken("gpu[0].flops", "missing", "flops", {"extra": GPU}),
    "gpu with empty flops": Broken(
        "gpu[0].flops", "is empty", "float16", {"extra": GPU + "flops = {}"}
    ),
    "gpu with unknown dtype": Broken(
        "gpu[0].flops.float17", "unknown", "'float16'", {"extra": GPU + "flops = {float17 = 1e12}"}
    ),
    "gpu twice": Broken(
        "gpu[1].name",
        "already",
        "rename",
        {"extra": 2 * (GPU + "flops = { float16 = 1e12 }\n")},
    ),
    "instance type with unknown gpu": Broken(
        "instance_type[0].gpu",
        "unknown gpu",
        "'L40S'",
        {"extra": '[[instance_type]]\nname = "box"\ngpu = "L40Z"'},
    ),
    "instance type with no gpus": Broken(
        "instance_type[0].gpu_count", "out of range", "from 1", {"extra": KIND + "gpu_count = 0"}
    ),
    "link that is a number": Broken(
        "instance_type[0].link", "not a table", "{ key", {"extra": KIND + "link = 5e9"}
    ),
    "link of no bandwidth": Broken(
        "instance_type[0].link.bandwidth",
        "out of range",
        "from 1",
        {"extra": KIND + "link = { bandwidth = 0 }"},
    ),
    "unknown table": Broken(
        "optimiser", "unknown table", "'optimizer'", {"extra": '[optimiser]\nname = "exact"'}
    ),
    "no such plugin to disable": Broken(
        "plugins.disable[0]",
        "no plugin",
        "'bundled-gpus'",
        {"extra": '[plugins]\ndisable = ["bundled-gpu"]'},
    ),
    "disabled, but needed": Broken(
        "plugins.require[0]",
        "it is disabled",
        "enable",
        {"extra": '[plugins]\nrequire = ["bundled-storage"]\ndisable = ["bundled-storage"]'},
    ),
    "plugins as a text": Broken(
        "plugins.require", "not a list", "brackets", {"extra": '[plugins]\nrequire = "mine"'}
    ),
    "not TOML": Broken("", "not valid TOML", "correct", {"extra": "[[[["}),
    "key without a value": Broken("", "not valid TOML", "correct", {"extra": "x ="}),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_with_key_and_remedy(name: str, write_config: Callable[..., Path]) -> None:
    case = CASES[name]
    file = write_config(**case.pieces)
    with pytest.raises(UserError) as caught:
        load_config(file)
    error = caught.value
    assert not isinstance(error, UserErrorGroup), str(error)
    assert error.where == (f"{file}: {case.key}" if case.key else str(file))
    assert case.says in error.message
    assert case.remedy in error.remedy
    assert "\n" not in str(error)
    assert error.exit_code == 2


def test_there_are_enough_kinds() -> None:
    assert len(CASES) >= 40


def test_all_mistakes_at_once(write_config: Callable[..., Path]) -> None:
    file = write_config(
        workload='[workload]\ninput_tokens = "x"\nmax_length = -1\n',
        cluster='[[cluster]]\ninstance = "g7"\ncount = -2\n[[cluster]]\ninstance="g6e.xlarge"\n',
        extra="[servr]\n",
    )
    with pytest.raises(UserErrorGroup) as caught:
        load_config(file)
    keys = {error.where.removeprefix(f"{file}: ") for error in caught.value.errors}
    assert keys == {
        "servr",
        "workload.input_tokens",
        "workload.max_length",
        "cluster[0].instance",
        "cluster[0].count",
        "cluster[1].count",
    }
    assert len(str(caught.value).splitlines()) == len(keys)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "no such file"), (b"\xff\xfe", "not UTF-8"), (b"x = 1\x00", "not valid TOML")],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "cluster.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_config(file)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read it"):
        load_config(tmp_path)


def test_a_near_miss_of_the_file_name(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text("")
    with pytest.raises(UserError, match=r"did you mean '.*/cluster\.toml'"):
        load_config(tmp_path / "clutser.toml")
