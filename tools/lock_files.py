"""The last step of tools/lock: put the hashes of torch together, and CUDA's libraries aside."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

HEADER = """\
# Made by tools/lock; tools/environment installs it with --require-hashes.
"""
CUDA_HEADER = (
    HEADER
    + """\
# What torch needs beside itself where its build is one for CUDA; for the CPU it needs none.
"""
)
_CUDA = re.compile(r"nvidia-.*|cuda-.*|triton")
_HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")
_VIA = re.compile(r"^    #(?: via|  )\s+(\S+)", re.MULTILINE)


def entries(text: str) -> dict[str, str]:
    """Requirement lines with all that belongs to each, by their first line's name and marker."""
    parts = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)
    return {part.partition(" \\")[0].strip(): part for part in parts if part[:1].isalnum()}


def name_of(line: str) -> str:
    """The name of the package in a requirement line."""
    return re.split(r"[=<>!~\[ ;]", line)[0].lower()


def for_cuda(made: dict[str, str]) -> set[str]:
    """Names of what nothing but torch wants, directly or through others of these."""
    wanted_by = {
        name_of(line): {via for via in _VIA.findall(text) if via not in ("-r", "-c")}
        for line, text in made.items()
    }
    names = {name for name in wanted_by if _CUDA.fullmatch(name)}
    while others := {name for name in names if wanted_by[name] - names - {"torch"}}:
        names -= others
    return names


def with_hashes(line: str, hashes: set[str]) -> str:
    """A requirement with these hashes."""
    return " \\\n".join([line, *(f"    --hash={value}" for value in sorted(hashes))]) + "\n"


def main() -> None:
    """Write the files."""
    folder, scratch, *builds = map(Path, sys.argv[1:])
    own = {f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in builds}
    cuda: dict[str, str] = {}
    for name in ("test.txt", "quickstart.txt", "uv.txt", "clients.txt"):
        file = folder / name
        before = entries(file.read_text()) if file.exists() else {}
        made = entries((scratch / name).read_text())
        kept, aside = "", for_cuda(made)
        for line, text in made.items():
            hashes = set(_HASH.findall(text))
            if name_of(line) == "torch":  # builds of other machines stay
                hashes |= own | set(_HASH.findall(before.get(line, "")))
            if name_of(line) in aside:
                cuda[line] = with_hashes(line, hashes)
            else:
                kept += with_hashes(line, hashes)
        header = HEADER.replace("environment", "clients") if name == "clients.txt" else HEADER
        file.write_text(header + kept)
    (folder / "torch-cuda.txt").write_text(
        CUDA_HEADER + "".join(dict(sorted(cuda.items())).values())
    )


if __name__ == "__main__":
    main()
