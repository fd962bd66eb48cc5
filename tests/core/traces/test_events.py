from __future__ import annotations

import json
from pathlib import Path

import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.traces.events import TraceEvent, read_events


def write(tmp_path: Path, name: str, text: str) -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def test_csv_and_json_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"at": 5, "node": "a#1", "kind": "lost"},
        {"at": 1.5, "node": "a#0", "kind": "notice", "notice": 30},
    ]
    table = "at,node,kind,notice\n5,a#1,lost,\n1.5,a#0,notice,30\n"
    wanted = (TraceEvent(1.5, "a#0", "notice", 30.0), TraceEvent(5.0, "a#1", "lost"))
    assert read_events(write(tmp_path, "x.json", json.dumps(rows))) == wanted
    assert read_events(write(tmp_path, "x.csv", table)) == wanted


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "at,node\n1,a\n", "no column kind"),
        ("x.csv", "at,node,kind\nsoon,a,lost\n", "line 2"),
        ("x.csv", "at,node,kind\n1,a,lots\n", "did you mean 'lost'"),
        ("x.csv", "at,node,kind\n-1,a,lost\n", "before the start"),
        ("x.json", "{}", "list of objects"),
        ("x.json", "[", "not a trace"),
        ("x.json", '[{"node": "a", "kind": "lost"}]', "event 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_events(write(tmp_path, name, text))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_events(tmp_path / "none.csv")
