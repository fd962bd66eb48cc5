"""Each command with files and numbers that are none: exit status 2, one line, no traceback."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shuntserve_core.errors import UserError
from shuntserve_core.placement_json import read_placement
from shuntserve_core.traces import readers
from shuntserve_core.traces.events import read_events
from shuntserve_core.traces.readers import read_requests
from shuntserve_core.traces.spot import read_any_events
from shuntserve_core.types import Cluster
from tests.core.cli.conftest import Shuntserve

SOUND = """
[model]
name = "Qwen/Qwen3-32B"
[workload]
input_tokens = 763
output_tokens = 232
[[cluster]]
instance = "g6e.xlarge"
count = 4
[estimator]
name = "paper"
[optimizer]
name = "beam-search"
"""
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "binary": bytes(range(256)) * 9,
    "latin-1": "Modèle = 1".encode("latin-1"),
    "utf-16": "at,node,kind".encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{",
    "zeros": b"\0" * 9,
    "list": b"[1, 2]",
    "null": b"null",
    "number": b"1e999",
    "deep": b"[" * 100_000,
    "compressed": gzip.compress(b"x"),
    "half of a gzip file": gzip.compress(bytes(range(256)) * 40)[:200],
    "long line": b"x," * 200_000,
}
PLACES = ("missing", "directory", "below a file", "long name", "link to itself", "dangling link")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "sound.toml"
    file.write_text(SOUND)
    return file


@pytest.fixture
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What is meant by a name of `CONTENTS` or `PLACES`."""
    kind = request.param
    file = tmp_path / "broken"
    if kind in CONTENTS:
        file.write_bytes(CONTENTS[kind])
    elif kind == "directory":
        file.mkdir()
    elif kind == "below a file":
        file.touch()
        return file / "x"
    elif kind == "long name":
        return tmp_path / ("x" * 300)
    elif kind == "link to itself":
        file.symlink_to(file)
    elif kind == "dangling link":
        file.symlink_to(tmp_path / "nowhere")
    return file


def refused(run: Shuntserve, *arguments: object, lines: int = 1) -> str:
    """What is said of a command that is refused; a configuration may have several mistakes."""
    outcome = run(*arguments)
    assert outcome.code == 2, outcome
    said = outcome.err.splitlines()
    assert 1 <= len(said) <= lines, outcome.err
    assert all(line and not line.startswith((" ", "Usage", "Traceback")) for line in said)
    assert all("; " in line for line in said), "each line has a remedy"
    return outcome.err


@pytest.mark.parametrize("broken", [*CONTENTS, *PLACES], indirect=True)
def test_configurations(shuntserve: Shuntserve, broken: Path) -> None:
    for command, *more in (
        ("plan",),
        ("estimate", "--pipeline", "g6e.xlarge:64"),
        ("compare",),
        ("simulate", "--rate", 1),
        ("layer", "--gpu", "L40S"),
        ("check",),
        ("serve",),
        ("doctor",),
    ):
        refused(shuntserve, command, broken, *more, lines=4)
    refused(shuntserve, "bench", broken)


@pytest.mark.parametrize("broken", [*CONTENTS, *PLACES], indirect=True)
def test_other_files(shuntserve: Shuntserve, config: Path, broken: Path, tmp_path: Path) -> None:
    refused(shuntserve, "bench", "http://127.0.0.1:1", "--trace", broken)
    refused(shuntserve, "simulate", config, "--workload", broken)
    for flag in ("--events", "--placement"):
        refused(shuntserve, "simulate", config, "--rate", 1, flag, broken)
    if len(broken.name) < 99 and broken.is_file():
        named = broken.rename(broken.with_suffix(".json"))
        refused(shuntserve, "simulate", config, "--rate", 1, "--profile", named)
        refused(shuntserve, "simulate", config, "--rate", 1, "--events", named)
        refused(shuntserve, "weights", "push", named, tmp_path / "store")
        refused(shuntserve, "weights", "push", named.rename(tmp_path / "b.gguf"), tmp_path / "s")


@pytest.mark.parametrize("broken", PLACES, indirect=True)
def test_stores_and_clusters(shuntserve: Shuntserve, broken: Path, tmp_path: Path) -> None:
    refused(shuntserve, "status", "--cluster", broken)
    refused(shuntserve, "weights", "verify", "a/b", broken)
    refused(shuntserve, "weights", "push", broken, tmp_path / "store")
    if not os.path.isdir(broken):  # noqa: PTH112 - Path.is_dir raises for a long name
        refused(shuntserve, "weights", "ls", broken)


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan",),
        ("no-such-command",),
        ("plan", "CONFIG", "--no-such-option"),
        ("plan", "CONFIG", "--rate", "nan"),
        ("plan", "CONFIG", "--rate", "many"),
        ("plan", "CONFIG", "--time-limit", "0"),
        ("plan", "CONFIG", "--optimizer", "none"),
        ("estimate", "CONFIG", "--pipeline", "x"),
        ("estimate", "CONFIG", "--pipeline", "g6e.xlarge:64,"),
        ("layer", "CONFIG", "--gpu", "none"),
        ("simulate", "CONFIG", "--rate", "nan"),
        ("simulate", "CONFIG", "--rate", "inf"),
        ("simulate", "CONFIG", "--rate", "-1"),
        ("simulate", "CONFIG", "--rate", "1", "--variation", "nan"),
        ("simulate", "CONFIG", "--rate", "1", "--duration", "nan"),
        ("simulate", "CONFIG", "--rate", "1", "--time-scale", "inf"),
        ("simulate", "CONFIG", "--rate", "1", "--seed", "-1"),
        ("bench", "http://"),
        ("bench", "ftp://127.0.0.1"),
        ("bench", "http://127.0.0.1:99999"),
        ("bench", "http://127.0.0.1:1"),
        ("bench", "http://no-such-host.invalid"),
        ("bench", "http://127.0.0.1:1", "--timeout", "nan"),
        ("bench", "http://127.0.0.1:1", "--token-ids", "5", "1"),
        ("interrupt", "node", "--notice", "inf"),
        ("weights", "push", "a", "b", "--tp", "x"),
        ("weights", "push", "a", "b", "--wait", "nan"),
        ("weights", "pull", "a/b", "c", "d", "--rank", "0"),
        ("weights", "ls", "none://store"),
    ],
    ids=" ".join,
)
def test_arguments(shuntserve: Shuntserve, config: Path, arguments: tuple[str, ...]) -> None:
    refused(shuntserve, *(config if word == "CONFIG" else word for word in arguments))


@pytest.mark.parametrize("place", ["none/out", "file/out", "directory"])
def test_outputs_are_looked_at_before_the_work(
    shuntserve: Shuntserve, config: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    out = tmp_path / place
    assert refused(shuntserve, "plan", config, "--out", out).startswith("--out: cannot write")
    refused(shuntserve, "bench", "http://127.0.0.1:1", "--output", out)
    if place == "file/out":
        simulate = ("simulate", config, "--rate", 1, "--out", out)
        for command in (("compare", config, "--out", out), simulate):
            text = refused(shuntserve, *command)
            assert text == f"--out: cannot write {out}: not a directory; name a folder\n"
        said = refused(shuntserve, "weights", "quickstart", tmp_path / "q", out)
        assert said.startswith(f"STORE: cannot write {out}: not a directory")


ROW = b"at,input_tokens,output_tokens\n"
REQUESTS = [
    (b"0,5,5\n1,x,5\n", "line 3: not a request: input_tokens is 'x'"),
    (b"0,5,5\n1,,5\n", "line 3: not a request: input_tokens is blank"),
    (b"0,5,-1\n", "line 2: not a request: output_tokens is '-1'"),
    (b"0,2.5,5\n", "line 2: not a request: input_tokens is '2.5'"),
    (b"nan,5,5\n", "line 2: not a request: at is 'nan'"),
    (b"0,5\n", "line 2: not a request: output_tokens is blank"),
    (b"0,5,99999999999\n", "line 2: not a request: output_tokens is '99999999999'"),
    (b"", "no requests"),
]


@pytest.mark.parametrize(("rows", "said"), REQUESTS)
@pytest.mark.parametrize("form", ["plain", "gzip", "windows"])
def test_traces_name_the_line(
    shuntserve: Shuntserve, config: Path, tmp_path: Path, rows: bytes, said: str, form: str
) -> None:
    """In every command that reads one, and in the configuration."""
    data = ROW + rows
    if form == "windows":
        data = b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")
    trace = tmp_path / "trace.csv"
    trace.write_bytes(gzip.compress(data) if form == "gzip" else data)
    for command in (
        ("bench", "http://127.0.0.1:1", "--model", "m", "--trace", trace),
        ("simulate", config, "--workload", trace),
    ):
        assert f"{trace}: {said}" in refused(shuntserve, *command)
    if "at is" in said:
        return  # which it does not read, as only lengths matter there
    config.write_text(
        SOUND.replace("input_tokens = 763\noutput_tokens = 232", 'trace = "trace.csv"')
    )
    assert said.split("not a request: ")[-1] in refused(shuntserve, "check", config)


@pytest.mark.parametrize(
    ("rows", "count"),
    [(b"1,0,0\n0,7,3\n", 2), (b"0,763.0,232.0\n", 1), (b" 0 , 5 , 6 \n\n", 1)],
)
def test_traces_that_are_odd_and_sound(tmp_path: Path, rows: bytes, count: int) -> None:
    file = tmp_path / "trace.csv"
    file.write_bytes(gzip.compress(b"# of a Tuesday\n" + ROW + rows))
    assert len(read_requests(file)) == count


def test_what_never_ends_is_refused(
    shuntserve: Shuntserve, config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(readers, "MOST_BYTES", 1 << 20)
    said = refused(shuntserve, "check", "/dev/zero")
    assert said.startswith("/dev/zero: is larger than the 16777216 bytes that make sense; see")
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(b"\n" * (2 << 20)))
    for file in ("/dev/zero", bomb):
        for flags in (("--workload", file), ("--rate", 1, "--events", file)):
            assert "than the 1048576 bytes that make sense; " in refused(
                shuntserve, "simulate", config, *flags
            )


EVENTS = [
    (b"at,node\n0,g6e.xlarge#0\n", "no column kind"),
    (b"at,node,kind\nnan,g6e.xlarge#0,lost\n", "not a time"),
    (b"at,node,kind\n-1,g6e.xlarge#0,lost\n", "a time before the start"),
    (b"at,node,kind\ninf,g6e.xlarge#0,lost\n", "not a time"),
    (b"at,node,kind\nx,g6e.xlarge#0,lost\n", "not an event"),
    (b"at,node,kind\n0,g6e.xlarge#0,exploded\n", "unknown kind 'exploded'"),
    (b'{"metadata": {}, "data": [1]}', "not a spot trace"),
    (b'{"metadata": {"gap_seconds": 1}, "data": []}', "not a spot trace"),
    (b'[1, "add"]', "not a spot trace"),
    (b"Time,InstanceType\nyesterday,g6e.xlarge\n", "not a spot trace"),
]


@pytest.mark.parametrize(("text", "said"), EVENTS)
@pytest.mark.parametrize("form", ["plain", "gzip"])
def test_events_name_what_is_wrong(
    shuntserve: Shuntserve, config: Path, tmp_path: Path, text: bytes, said: str, form: str
) -> None:
    file = tmp_path / "events.csv"
    file.write_bytes(gzip.compress(text) if form == "gzip" else text)
    assert said in refused(shuntserve, "simulate", config, "--rate", 1, "--events", file)


def test_compressed_events_are_read(tmp_path: Path) -> None:
    file = tmp_path / "events.csv.gz"
    file.write_bytes(gzip.compress(b"at,node,kind\n5,a#0,lost\n"))
    assert [event.at for event in read_events(file)] == [5.0]


def _damaged(plan: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> str:
    copy = json.loads(json.dumps(plan))
    change(copy)
    return json.dumps(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda plan: plan["pipelines"][0]["stages"][0].update(instance="none"),
            "'none' is not",
        ),
        (
            lambda plan: plan["pipelines"][0]["stages"][0].update(layers=7),
            "layers, the model has 64",
        ),
        (lambda plan: plan["pipelines"][0]["stages"][0].update(layers=-1), "layers"),
        (lambda plan: plan["pipelines"][0]["stages"][0].update(layers="x"), "layers"),
        (lambda plan: plan["pipelines"][0]["stages"][0].update(tensor_parallel=8), "wants 8"),
        (lambda plan: plan["pipelines"][0].update(stages=[]), "has 0 layers"),
        (lambda plan: plan.pop("pipelines"), "pipelines"),
        (lambda plan: plan.update(pipelines=None), "pipelines"),
    ],
)
def test_placements_name_what_does_not_fit(
    shuntserve: Shuntserve,
    config: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], object],
    said: str,
) -> None:
    file = tmp_path / "plan.json"
    assert shuntserve("plan", config, "--out", file).code == 0
    file.write_text(_damaged(json.loads(file.read_text()), change))
    text = refused(shuntserve, "simulate", config, "--rate", 1, "--placement", file)
    assert said in text
    assert str(file) in text


JUNK = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(str.encode),
    st.lists(st.sampled_from([b"at", b"node", b"kind", b"[", b"{", b'"', b",", b"\n", b"1"])).map(
        b"".join
    ),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["pipelines", "stages", "data", "at"]), inner)
        ),
        max_leaves=9,
    ).map(lambda value: json.dumps(value).encode()),
)


def _refusal(read: Callable[[], object]) -> UserError | None:
    try:
        read()
    except UserError as error:
        return error
    return None


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=JUNK, compressed=st.booleans())
def test_readers_take_a_file_or_refuse_it(tmp_path: Path, data: bytes, compressed: bool) -> None:
    file = tmp_path / "junk"
    file.write_bytes(gzip.compress(data) if compressed else data)
    readers: list[Callable[[], object]] = [
        lambda: read_requests(file),
        lambda: read_events(file),
        lambda: read_any_events(file, Cluster(())),
        lambda: read_placement(file),
    ]
    for read in readers:
        error = _refusal(read)
        if error is not None:
            assert "\n" not in str(error)
            assert error.remedy
