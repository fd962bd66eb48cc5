"""Options of plugins: paths are relative to the file; `check` says what cannot be used."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest
from attrs import field, frozen

from shuntserve_core.cli.check import _unimported
from shuntserve_core.config import Config, load_config
from shuntserve_core.config.build import door_of, plugin_from
from shuntserve_core.config.fields import RelativePath
from shuntserve_core.config.options import plain_options
from shuntserve_core.config.schema import class_schema
from shuntserve_core.errors import UserError
from shuntserve_core.hookspecs import Provider, hookimpl
from shuntserve_core.registry import Registry
from shuntserve_core.types.spot import SpotEvent
from tests.core.config.conftest import WriteConfig


@frozen
class Table:
    """A table among the options."""

    file: Path
    """A file."""


@frozen
class Battery:
    """A spot source with paths of every form."""

    file: Path
    """A file."""
    maybe: Path | None = None
    """Perhaps a file."""
    several: tuple[Path, ...] = ()
    """Files."""
    text: Annotated[str, RelativePath("stderr")] = ""
    """A file as a text, or `stderr`."""
    tables: tuple[Table, ...] = field(default=())
    """Tables with files."""
    by_name: dict[str, Path] = field(factory=dict)
    """Files by name."""

    on_node = False

    async def events(self, nodes: Sequence[str]) -> AsyncIterator[SpotEvent]:
        yield SpotEvent(nodes[0], "rebalance")


class Mute:
    """A front door that says nothing of itself."""

    async def start(self, backend: object, model_dir: str, model_name: str) -> str:
        return "http://127.0.0.1:1"

    async def drain(self, deadline: float) -> None:
        return None


class Broken:
    """A front door that cannot be drained."""

    async def start(self, backend: object, model_dir: str, model_name: str) -> str:
        return ""


@hookimpl
def spot_sources() -> list[Provider]:
    return [Provider("battery", f"{__name__}:Battery")]


@hookimpl
def frontdoors() -> list[Provider]:
    return [
        Provider("mute", f"{__name__}:Mute"),
        Provider("broken", f"{__name__}:Broken"),
        Provider("absent", "no_such_module:Door"),
    ]


@pytest.fixture
def registry() -> Registry:
    module = ModuleType("mine")
    module.__dict__["shuntserve_register_spot_sources"] = spot_sources
    module.__dict__["shuntserve_register_frontdoors"] = frontdoors
    return Registry(extra={"mine": module})


def battery(config: Config) -> Battery:
    made = plugin_from(config, "spot-source", config.document.spot[0])
    assert isinstance(made, Battery)
    return made


def test_paths_are_relative_to_the_file(
    write_config: WriteConfig, registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    spot = """[[spot]]
name = "battery"
file = "ups.txt"
maybe = "/etc/ups"
several = ["a", "~/b"]
text = "log"
tables = [{ file = "deep" }]
by_name = { x = "c" }
"""
    file = write_config(spot)
    monkeypatch.chdir("/")
    made = battery(load_config(file, registry))
    assert made == Battery(
        file=tmp_path / "ups.txt",
        maybe=Path("/etc/ups"),
        several=(tmp_path / "a", Path("/home/somebody/b")),
        text=str(tmp_path / "log"),
        tables=(Table(tmp_path / "deep"),),
        by_name={"x": tmp_path / "c"},
    )
    plain = plain_options(made)
    assert plain["file"] == str(tmp_path / "ups.txt")
    assert list(plain["tables"]) == [{"file": str(tmp_path / "deep")}]


def test_a_relative_name_of_the_file_makes_full_paths(
    write_config: WriteConfig, registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_config('[[spot]]\nname = "battery"\nfile = "ups.txt"\ntext = "stderr"\n')
    monkeypatch.chdir(tmp_path)
    made = battery(load_config("cluster.toml", registry))
    assert made.file == tmp_path / "ups.txt"
    assert made.text == "stderr"


@pytest.mark.parametrize("value", ["3", "[]", '"a\\u0000b"'])
def test_what_is_no_path(write_config: WriteConfig, registry: Registry, value: str) -> None:
    file = write_config(f'[[spot]]\nname = "battery"\nfile = {value}\n')
    with pytest.raises(UserError, match=r"spot\[0\].file: .* is (not a text|no path)"):
        load_config(file, registry)


def test_paths_in_the_schema() -> None:
    properties = class_schema(Battery)["properties"]
    assert properties["file"]["type"] == "string"
    assert properties["text"]["type"] == "string"
    assert properties["several"]["items"] == {"type": "string"}


def test_every_bundled_option_that_is_a_path_is_relative(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    door = """[frontdoor]
tls_certificate = "door.pem"
tls_key = "door.key"
chat_template = "chat.jinja"
access_log = "access.log"
api_keys = [{ name = "me", file = "key" }]

[[spot]]
name = "trace"
file = "trace.csv"
"""
    file = write_config(door)
    monkeypatch.chdir("/")
    config = load_config(file)
    plain = plain_options(plugin_from(config, "frontdoor", config.document.frontdoor))
    files = [plain[key] for key in ("tls_certificate", "tls_key", "chat_template", "access_log")]
    files.append(plain["api_keys"][0]["file"])
    files.append(plain_options(plugin_from(config, "spot-source", config.document.spot[0]))["file"])
    names = ["door.pem", "door.key", "chat.jinja", "access.log", "key", "trace.csv"]
    assert files == [str(tmp_path / name) for name in names]


def test_bench_finds_the_door_of_a_file(write_config: WriteConfig) -> None:
    door = door_of(write_config('[frontdoor]\nport = 1234\nhost = "::1"\n'), Registry())
    assert getattr(door, "url", "") == "http://[::1]:1234"


@pytest.mark.parametrize("name", ["mute", "broken", "absent"])
def test_check_judges_front_doors(write_config: WriteConfig, registry: Registry, name: str) -> None:
    config = load_config(write_config(f'[frontdoor]\nname = "{name}"\n'), registry)
    if name == "broken":
        with pytest.raises(UserError, match=r"cannot be used: it lacks `drain` of .*FrontDoor"):
            _unimported(config)
    else:
        troubles = _unimported(config)
        assert bool(troubles) == (name == "absent")
        assert all("install what provides 'no_such_module'" in trouble for trouble in troubles)
    assert "no_such_module" not in sys.modules
